//! Bytes: what clients and nodes say to each other, and the only place that names sockets.

pub mod frame;
pub mod http;
pub mod listen;
pub mod load;
pub mod packet;
pub mod resp;
