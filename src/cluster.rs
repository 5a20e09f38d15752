//! The nodes of a cluster: which slots are whose, who is there, and who is to be believed.
//!
//! [`slots`] tell which partition a key belongs to, [`topology`] which nodes hold a partition and which
//! leads it. [`barrier`] decides when all nodes are there and the
//! cluster is formed, [`link`] whether another node can be reached and until when what it asks is
//! served, [`suspects`] what becomes of replicas that may have lost what they acknowledged.

pub mod barrier;
pub mod link;
pub mod slots;
pub mod suspects;
pub mod topology;
