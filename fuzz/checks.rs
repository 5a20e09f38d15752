//! What must hold of any bytes that a stranger may send: nothing panics, and how a stream is cut
//! into reads changes nothing. Shared by the fuzz targets and by the test of their corpus.

use quorate::net::frame;
use quorate::net::packet::Packet;
use quorate::net::resp::{Limits, ReplyReader, Requests, Value};

/// Limits that a fuzzer's inputs can reach.
const LIMITS: Limits = Limits { word_bytes: 4096, argv: 64, line_bytes: 256, request_bytes: 16384 };

/// Lengths of reads, in turn.
const READS: [usize; 6] = [1, 2, 3, 7, 1, 61];

/// The input in reads of different lengths.
fn reads(data: &[u8]) -> Vec<&[u8]> {
    let mut rest = data;
    let mut pieces = Vec::new();
    for length in READS.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at((*length).min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// Requests, and the error that ends them.
type Asked = (Vec<Vec<Vec<u8>>>, Option<Vec<u8>>);

fn ask(pieces: &[&[u8]]) -> Asked {
    let (mut requests, mut buffer, mut asked) = (Requests::new(), Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match requests.next(&buffer, &LIMITS) {
                Ok(Some(words)) => asked.push(words.from(0).map(<[u8]>::to_vec).collect()),
                Ok(None) => break,
                Err(error) => return (asked, Some(error.reply_text())),
            }
        }
        assert!(requests.needs(buffer.len()) > buffer.len(), "it waits for what it has");
        let done = requests.done();
        buffer.drain(..done);
        requests.dropped(done);
    }
    (asked, None)
}

/// A client's bytes.
pub fn requests(data: &[u8]) {
    let whole = ask(&[data]);
    let cut = ask(&reads(data));
    // A length that is too long may be refused before its line has come, but what went before is
    // the same.
    assert_eq!(whole.0, cut.0);
    assert_eq!(whole.1.is_some(), cut.1.is_some());
}

/// A server's bytes.
pub fn replies(data: &[u8]) {
    let (mut at, mut lengths) = (0, Vec::new());
    while let Ok(Some(length)) = ReplyReader::new().next(&data[at..]) {
        if let Ok(parsed) = Value::parse(&data[at..]) {
            assert_eq!(parsed.map(|(_, length)| length), Some(length));
        }
        assert!(length > 0, "a reply has bytes");
        at += length;
        lengths.push(length);
    }
    let (mut reader, mut buffer, mut cut) = (ReplyReader::new(), Vec::new(), Vec::new());
    'reads: for piece in reads(data) {
        buffer.extend_from_slice(piece);
        loop {
            match reader.next(&buffer) {
                Ok(Some(length)) => {
                    buffer.drain(..length);
                    cut.push(length);
                }
                Ok(None) => break,
                Err(_) => break 'reads,
            }
        }
    }
    assert_eq!(lengths, cut);
}

/// A peer's bytes.
pub fn frames(data: &[u8]) {
    let mut buffer = data.to_vec();
    let mut whole: Vec<Packet> = Vec::new();
    let sound = frame::take(&mut buffer, &mut whole).is_ok();
    let (mut buffer, mut cut) = (Vec::new(), Vec::new());
    let cut_sound = reads(data).into_iter().all(|piece| {
        buffer.extend_from_slice(piece);
        frame::take(&mut buffer, &mut cut).is_ok()
    });
    assert_eq!((sound, &whole), (cut_sound, &cut));
    // What was understood can be said again.
    for packet in whole {
        let mut again = Vec::new();
        frame::push(&packet, &mut again).expect("a packet that came fits a frame");
        let mut packets = Vec::new();
        frame::take(&mut again, &mut packets).expect("our own frame");
        assert_eq!(packets, [packet]);
    }
}
