//! A key's state on its way: between partitions and Coordinators, and in an intent.

use crate::ids::{Millis, TableIndex};
use crate::store::value::ValueBuf;
use serde::{Deserialize, Serialize};

/// A key's state as it moves between partitions and Coordinators, and as an intent holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyState {
    /// The table.
    pub table: TableIndex,
    /// The key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// What the key holds, or `None` when it is absent.
    pub held: Option<HeldValue>,
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldValue {
    /// The value.
    pub value: ValueBuf,
    /// When it expires.
    pub expires: Option<Millis>,
}
