//! A cluster of one node that does what a test says: nothing of it is real but the connection.

use super::{Cluster, Node};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

/// What ends the node.
const STOP: &[u8] = b"STOP";

/// What becomes of a request: its reply, or none, which ends the connection. It is told the number of
/// the connection.
pub(super) type Answer<'a> = &'a mut (dyn FnMut(usize, &[Vec<u8>]) -> Option<Vec<u8>> + Send);

/// Runs `act` on a cluster whose only node answers so.
pub(super) fn cluster<T>(answer: Answer<'_>, act: impl FnOnce(&Cluster) -> T) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = listener.local_addr().unwrap().port();
    let node = Node { id: 1, host: "127.0.0.1".into(), client, http: 0, status: None };
    let cluster = Cluster { name: "c".into(), nodes: vec![node] };
    thread::scope(|scope| {
        scope.spawn(|| {
            for connection in 0.. {
                let (stream, _) = listener.accept().unwrap();
                // A connection that was cut is over as any other.
                if serve(stream, connection, answer).unwrap_or(false) {
                    return;
                }
            }
        });
        let done = act(&cluster);
        let mut stream = TcpStream::connect(("127.0.0.1", client)).unwrap();
        stream.write_all(b"*1\r\n$4\r\nSTOP\r\n").unwrap();
        done
    })
}

/// Serves a connection to its end: whether the node is to stop.
fn serve(stream: TcpStream, connection: usize, answer: Answer<'_>) -> io::Result<bool> {
    let mut output = stream.try_clone()?;
    let mut input = BufReader::new(stream);
    loop {
        let words = words(&mut input)?;
        if words[0] == STOP {
            return Ok(true);
        }
        let Some(reply) = answer(connection, &words) else { return Ok(false) };
        output.write_all(&reply)?;
    }
}

fn words(input: &mut BufReader<TcpStream>) -> io::Result<Vec<Vec<u8>>> {
    let count = number(input)?;
    let mut word = || {
        let mut word = vec![0; number(input)? + 2];
        input.read_exact(&mut word)?;
        word.truncate(word.len() - 2);
        Ok(word)
    };
    (0..count).map(|_| word()).collect()
}

fn number(input: &mut BufReader<TcpStream>) -> io::Result<usize> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    let number = line.trim_end().get(1..).and_then(|number| number.parse().ok());
    number.ok_or(io::ErrorKind::InvalidData.into())
}
