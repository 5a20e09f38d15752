//! What a partition holds: items, the tables that they are in, and how items leave them as bytes.
//!
//! A partition is sixteen [`tables`], each a [hash table](table) of [items](item) of one
//! allocation. An item's [`value`] has a type and an encoding. Every change of a key goes through
//! [`tables::Tables`], which has the time as of which things are looked at and the
//! [versions of watched keys](watches). Items leave a table as [pages]: in snapshots, in backups
//! ([`image`]) and between nodes.

pub mod image;
pub mod item;
pub mod key_state;
pub mod number;
pub mod packed;
pub mod pages;
pub mod sorted;
pub mod table;
pub mod tables;
pub mod value;
pub mod watches;
