//! (to be written)
pub struct Tables;
