//! RESP: how clients and servers of Redis talk.
//!
//! [`request`] is the server's side: requests out of a connection's read buffer. [`value`] is the
//! client's side: whole replies out of a stream, for the client role, the bench and the tests.
//! How replies are written is [`crate::command::reply`]'s.
//!
//! The protocol is described at <https://redis.io/docs/reference/protocol-spec/>.

pub mod request;
pub mod value;

pub use request::{Limits, ProtocolError, Requests};
pub use value::{ReplyError, ReplyReader, Value, encode_request};
