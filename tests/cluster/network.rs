//! A network between the nodes of a test cluster that can be cut.
//!
//! Each node binds to an address of its own ([`home`]); at the address that the cluster's file
//! names this process listens and passes bytes on. Who dials a peer port is read off its
//! introduction, so any pair can be cut, in either direction: bytes wait then, as in a network that
//! loses packets, and arrive late when the cut is healed, unless the connection is reset.

use super::Ports;
use quorate::net::frame;
use quorate::net::packet::Packet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How long a thread waits before it looks again whether it may go on.
const LOOK: Duration = Duration::from_millis(5);

/// After how long TCP sends again what nobody has confirmed, at first; each time after that twice as
/// long (RFC 6298, with the least of Linux).
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// The address that a node binds to.
pub fn home(id: u16) -> String {
    format!("127.0.1.{id}")
}

/// The wires between all nodes. Everything it carries ends when it is dropped.
pub struct Network {
    wires: Arc<Wires>,
}

struct Wires {
    nodes: usize,
    /// By sender and receiver.
    cut: Vec<AtomicBool>,
    /// Connections made in an earlier era are reset.
    era: AtomicU64,
    /// Of a hundred packets between nodes, how many are lost.
    loss: AtomicU64,
    ended: AtomicBool,
}

impl Network {
    /// Listens for the nodes at the ports of the file.
    pub fn between(ports: &[Ports]) -> Network {
        let nodes = ports.len() + 1;
        let cut = (0..nodes * nodes).map(|_| AtomicBool::new(false)).collect();
        let [era, loss] = [0, 0].map(AtomicU64::new);
        let wires = Arc::new(Wires { nodes, cut, era, loss, ended: AtomicBool::new(false) });
        for (id, ports) in (1..).zip(ports) {
            for (port, of_peers) in [(ports.peer, true), (ports.client, false), (ports.http, false)]
            {
                let listener = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
                listener.set_nonblocking(true).expect("a listener that can be asked");
                let wires = wires.clone();
                std::thread::spawn(move || wires.listen(&listener, id, port, of_peers));
            }
        }
        Network { wires }
    }

    /// Cuts or heals one direction between two nodes.
    pub fn cut(&self, from: u16, to: u16, is_cut: bool) {
        self.wires.way(from, to).store(is_cut, Ordering::SeqCst);
    }

    /// Cuts a node off from all others, both ways.
    pub fn isolate(&self, id: u16) {
        for other in 1..self.wires.nodes as u16 {
            self.cut(id, other, true);
            self.cut(other, id, true);
        }
    }

    /// Heals every cut; what waited arrives now.
    pub fn heal(&self) {
        self.wires.cut.iter().for_each(|cut| cut.store(false, Ordering::SeqCst));
    }

    /// Loses so many of a hundred packets between nodes. As TCP sends what was lost again, they
    /// come late, and what is behind them too.
    pub fn lose(&self, of_hundred: u64) {
        self.wires.loss.store(of_hundred, Ordering::SeqCst);
    }

    /// Ends every connection between nodes; what waits on them is lost.
    pub fn reset(&self) {
        self.wires.era.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.wires.ended.store(true, Ordering::SeqCst);
    }
}

impl Wires {
    fn way(&self, from: u16, to: u16) -> &AtomicBool {
        &self.cut[usize::from(from) * self.nodes + usize::from(to)]
    }

    fn listen(self: &Arc<Wires>, listener: &TcpListener, id: u16, port: u16, of_peers: bool) {
        while !self.ended.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((stream, _)) => {
                    let wires = self.clone();
                    std::thread::spawn(move || wires.connect(stream, id, port, of_peers));
                }
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }

    /// Carries one connection. One that cannot be carried is closed, as if nobody listened.
    fn connect(self: Arc<Wires>, mut caller: TcpStream, id: u16, port: u16, of_peers: bool) {
        let era = self.era.load(Ordering::SeqCst);
        let prepared = caller.set_nonblocking(false).and_then(|()| caller.set_nodelay(true));
        let limited = prepared.and_then(|()| caller.set_read_timeout(Some(LOOK)));
        if limited.is_err() {
            return;
        }
        let mut first = Vec::new();
        // Clients are no nodes: the ways from and to 0 are never cut.
        let from = match of_peers {
            true => match self.introduced(&mut caller, &mut first) {
                Some(from) => from,
                None => return,
            },
            false => 0,
        };
        while self.is_cut(from, id) {
            if self.is_over(era) {
                return;
            }
            std::thread::sleep(LOOK);
        }
        let Ok(mut callee) = TcpStream::connect((home(id).as_str(), port)) else { return };
        let prepared = callee
            .set_nodelay(true)
            .and_then(|()| callee.set_read_timeout(Some(LOOK)))
            .and_then(|()| callee.write_all(&first));
        let (Ok(()), Ok(back), Ok(answers)) = (prepared, caller.try_clone(), callee.try_clone())
        else {
            return;
        };
        let wires = self.clone();
        std::thread::spawn(move || wires.carry(answers, back, (id, from), era));
        self.carry(caller, callee, (from, id), era);
    }

    /// Reads the introduction of whoever dials.
    fn introduced(&self, caller: &mut TcpStream, first: &mut Vec<u8>) -> Option<u16> {
        let mut piece = [0; 4096];
        while !self.ended.load(Ordering::SeqCst) {
            match caller.read(&mut piece) {
                Ok(0) => return None,
                Ok(read) => first.extend_from_slice(&piece[..read]),
                Err(error) if is_quiet(error.kind()) => continue,
                Err(_) => return None,
            }
            match frame::first(&mut first.clone()) {
                Ok(Some(Packet::Hello(hello))) => return Some(hello.node.0),
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return None,
            }
        }
        None
    }

    fn is_cut(&self, from: u16, to: u16) -> bool {
        self.way(from, to).load(Ordering::SeqCst)
    }

    /// How long a packet is under way again because it was lost, perhaps several times in turn.
    fn until_it_arrives(&self, chance: &mut u64) -> Duration {
        let loss = self.loss.load(Ordering::SeqCst);
        let mut delay = Duration::ZERO;
        let mut next = RETRANSMISSION;
        loop {
            // xorshift64 (Marsaglia 2003).
            *chance ^= *chance << 13;
            *chance ^= *chance >> 7;
            *chance ^= *chance << 17;
            if *chance % 100 >= loss {
                return delay;
            }
            delay += next;
            next *= 2;
        }
    }

    fn is_over(&self, era: u64) -> bool {
        self.ended.load(Ordering::SeqCst) || self.era.load(Ordering::SeqCst) != era
    }

    /// Passes bytes on in one direction until either side ends.
    fn carry(&self, mut from: TcpStream, mut to: TcpStream, way: (u16, u16), era: u64) {
        let of_nodes = way.0 != 0 && way.1 != 0;
        let is_over = || match of_nodes {
            true => self.is_over(era),
            false => self.ended.load(Ordering::SeqCst),
        };
        let mut piece = vec![0; 64 << 10];
        let mut chance = u64::from(way.0) << 32 | u64::from(way.1) << 16 | 1;
        while !is_over() {
            if self.is_cut(way.0, way.1) {
                std::thread::sleep(LOOK);
                continue;
            }
            match from.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => {
                    if of_nodes {
                        std::thread::sleep(self.until_it_arrives(&mut chance));
                    }
                    // What was read just before the cut waits like the rest.
                    while self.is_cut(way.0, way.1) && !is_over() {
                        std::thread::sleep(LOOK);
                    }
                    if is_over() || to.write_all(&piece[..read]).is_err() {
                        break;
                    }
                }
                Err(error) if is_quiet(error.kind()) => {}
                Err(_) => break,
            }
        }
        // The other side may have gone first.
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

fn is_quiet(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
