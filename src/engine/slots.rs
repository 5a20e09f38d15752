//! key -> slot -> partition -> node. (to be written)
