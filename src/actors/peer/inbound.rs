//! What the other node says: each packet is checked and goes to the actor that it is for.
//!
//! A packet that no node of this version sends ends the link. Messages of the commit protocol that one
//! read brought leave together, and keep their place among what else goes to the same actors.

use super::requests::{fail, give};
use super::{Convey, Peer};
use crate::actors::archive;
use crate::actors::book::Book;
use crate::actors::bucket::{self, Failure};
use crate::actors::coordinator;
use crate::cluster::link::{StreamId, Word};
use crate::command::Redis;
use crate::ids::PartitionId;
use crate::net::packet::{Extent, Packet};
use actix::{Context, Handler, Message};
use bytes::Bytes;
use smallvec::SmallVec;
use std::sync::Arc;

/// Why a node is cut off that is of another version, or mistaken.
pub(super) const UNKNOWN_OPERATIONS: &str = "it sent operations that do not exist";

/// A word of the handshake, while the link does not stand.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Spoken(pub(super) StreamId, pub(super) Packet);

/// Packets that one read brought.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Inbound {
    pub(super) stream: u64,
    pub(super) packets: Vec<Packet>,
}

impl Peer {
    fn receive(&mut self, stream: StreamId, packet: Packet, ctx: &mut Context<Self>) {
        let Some(book) = self.book.clone() else { return };
        let extent =
            Extent { from: self.other, placement: book.topology.placement(), nodes: &self.nodes };
        if let Err(why) = packet.check(&extent) {
            return self.close(stream, &why, ctx);
        }
        match packet {
            Packet::Execute { id, batch } => self.on_execute(stream, id, batch, &book, ctx),
            Packet::Executed { id, replies } => {
                if let Some((batch, answer)) = self.pending.remove(&id) {
                    if replies.len() > batch.len() {
                        fail(answer, batch, Failure::Unknown(self.other));
                        self.close(stream, "it answers what was not asked", ctx);
                        return;
                    }
                    give(answer, batch, replies);
                }
            }
            Packet::Piece { number, bytes, last } => {
                let Some(known) = self.stream_mut(stream) else { return };
                match known.incoming.take(number, &bytes, last) {
                    Ok(Some(packet)) => self.receive(stream, packet, ctx),
                    Ok(None) => {}
                    Err(error) => self.close(stream, &error.to_string(), ctx),
                }
            }
            // A message for a partition that is not here would come straight back.
            Packet::Partition(_, message) if !message.is_known::<Redis>() => {
                self.close(stream, UNKNOWN_OPERATIONS, ctx);
            }
            Packet::Partition(to, message) => self.dispatch.to_partition_here(&book, to, message),
            Packet::Raft(messages) => self.on_raft(messages, &book),
            Packet::Leads(partition, node, term) => book.hear_of_leader(partition, node, term),
            Packet::Replicas(generations) => {
                let latest = generations.iter().map(|(_, generation)| *generation).max();
                self.see(latest.unwrap_or_default(), ctx);
                for bucket in &book.buckets {
                    bucket.do_send(bucket::Reborn(self.other, generations.clone()));
                }
            }
            Packet::Verified(partitions) => {
                book.coordinator.do_send(coordinator::Verified(self.other, partitions));
            }
            Packet::Transfer(transfer) => {
                if let Some(archive) = &book.archive {
                    archive.do_send(archive::Carried(self.other, transfer));
                }
            }
            Packet::Coordinator(message) => self.dispatch.to_coordinator(&book, book.node, message),
            Packet::Relay(to, relayed) => match book.peers.get(&to) {
                // Not asked to be relayed again, so it goes no further than one node.
                Some(peer) => peer.do_send(Convey(relayed.into())),
                None => self.close(stream, "it wants this node told by itself", ctx),
            },
            Packet::Ready => {
                if let Some(life) = self.link.life() {
                    book.coordinator.do_send(coordinator::NodeReady(self.other, life));
                }
            }
            Packet::Claim(nonce) => self.hear(stream, Word::Claim(nonce), ctx),
            Packet::Yours(nonce, yours) => self.hear(stream, Word::Yours(nonce, yours), ctx),
            Packet::Ping { number, seen } => self.hear(stream, Word::Ping { number, seen }, ctx),
            Packet::Pong(number) => self.hear(stream, Word::Pong(number), ctx),
            Packet::Hello(_) => self.close(stream, "it introduced itself twice", ctx),
            Packet::Refused => self.close(stream, "it refuses this node", ctx),
        }
    }

    fn hear(&mut self, stream: StreamId, word: Word, ctx: &mut Context<Self>) {
        let now = self.now_ms();
        if !self.link.hear(stream, word, now, &mut self.effects) {
            self.close(stream, "it says what has no place there", ctx);
        }
        self.carry(ctx);
    }

    /// Passes on the messages of the commit protocol that were received.
    fn deliver(&mut self) {
        if let Some(book) = &self.book {
            self.dispatch.send(book);
        }
    }

    /// Gives each Bucket the messages for its partitions.
    fn on_raft(&mut self, messages: Vec<(PartitionId, serde_bytes::ByteBuf)>, book: &Arc<Book>) {
        let mut shares: SmallVec<[Vec<(PartitionId, Bytes)>; 4]> =
            book.buckets.iter().map(|_| Vec::new()).collect();
        for (partition, message) in messages {
            if let Some(bucket) = book.placed.get(partition.index()).copied().flatten() {
                shares[bucket].push((partition, message.into_vec().into()));
            }
        }
        for (bucket, messages) in book.buckets.iter().zip(shares) {
            if !messages.is_empty() {
                bucket.do_send(bucket::Raft { from: self.other, messages });
            }
        }
    }
}

impl Handler<Spoken> for Peer {
    type Result = ();

    fn handle(&mut self, Spoken(stream, word): Spoken, ctx: &mut Context<Self>) {
        if self.link.has(stream) {
            self.receive(stream, word, ctx);
        }
    }
}

impl Handler<Inbound> for Peer {
    type Result = ();

    fn handle(&mut self, inbound: Inbound, ctx: &mut Context<Self>) {
        let Inbound { stream, packets } = inbound;
        for packet in packets {
            if !self.link.has(stream) {
                break;
            }
            let now = self.now_ms();
            self.link.heard(now);
            // What goes to the same actors as these keeps its place among them.
            if !matches!(packet, Packet::Partition(..) | Packet::Coordinator(_)) {
                self.deliver();
            }
            self.receive(stream, packet, ctx);
        }
        self.deliver();
    }
}
