//! A partition's part in a backup: [`crate::store::tables`] has the copy, and here is when it is
//! given up.

use super::Partition;
use crate::batch::machine::Machine;

/// A copy that no client pulls from for so long is given up: the client that asked for it has gone.
pub const BACKUP_PATIENCE_MS: u64 = 30_000;

impl<M: Machine> Partition<M> {
    /// Gives a backup's copy up if no client pulls from it. Tells how many bytes it holds.
    pub fn tend_backup(&mut self, mono: u64) -> usize {
        match self.replica.backup_was_pulled() {
            None => return 0,
            Some(true) => self.backup_pulled = mono,
            Some(false) if mono.saturating_sub(self.backup_pulled) < BACKUP_PATIENCE_MS => {}
            Some(false) => {
                log::info!(target: "backup", "partition {}: nobody pulls the copy", self.id);
                self.replica.abandon_backup();
            }
        }
        self.replica.tables().backup_backlog()
    }

    /// Gives a backup's copy up, if there is one.
    pub fn abandon_backup(&mut self) {
        self.replica.abandon_backup();
    }
}
