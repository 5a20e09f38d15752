//! What a share of a transaction claims.

use crate::batch::Op;
use crate::batch::machine::{Machine, Scope};
use crate::store::tables::Access;
use crate::txn::protocol::{Claim, Granule, Share};

/// What a share claims: the keys of its operations and those named beside them, each once, by
/// order of key.
pub fn share_claims<M: Machine>(share: &Share) -> Vec<Claim> {
    let mut claims = claims_of::<M>(share.batch.iter());
    claims.extend(share.claims.iter().cloned());
    claims.extend(share.watched.iter().map(|watched| Claim {
        granule: Granule::Key(watched.table, watched.key.clone()),
        access: Access::Read,
    }));
    merge(claims)
}

/// What operations claim, each granule once, by order of key.
pub fn claims_of<'a, M: Machine>(ops: impl Iterator<Item = Op<'a>>) -> Vec<Claim> {
    let mut claims = Vec::new();
    for op in ops {
        let access = M::access(op.head.code);
        match M::scope(op.head.code) {
            Scope::Glance | Scope::Partition => {
                claims.push(Claim { granule: Granule::Whole, access })
            }
            Scope::Keys => M::keys(&op, &mut |table, key| {
                let granule = Granule::Key(table, key.to_vec());
                claims.push(Claim { granule, access });
            }),
        }
    }
    merge(claims)
}

fn merge(mut claims: Vec<Claim>) -> Vec<Claim> {
    // The greater access comes first, so that it is the one kept.
    claims.sort_unstable_by(|one, other| {
        one.granule.cmp(&other.granule).then(other.access.cmp(&one.access))
    });
    claims.dedup_by(|later, kept| later.granule == kept.granule);
    claims
}
