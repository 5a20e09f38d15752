//! Reads replies: the client's side.
