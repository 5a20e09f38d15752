//! Bytes: what clients and nodes say to each other, and the only place that names sockets.

pub mod resp;
