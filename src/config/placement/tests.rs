use super::*;
use crate::config::{Durability, Mode};
use std::collections::{BTreeMap, BTreeSet};

fn cluster(nodes: u16, partitions: u16, more: &str) -> Config {
    let node = |id| format!("  - {{ id: {id}, host: h{id}, client: 1, peer: 2, http: 3 }}\n");
    let nodes: String = (1..=nodes).map(|n| node(10 * n)).collect();
    let text = format!("cluster: x\nnodes:\n{nodes}partitions: {partitions}\n{more}");
    Config::parse("c.yaml", &text).expect("valid")
}

fn class(replicas: u8, durability: Durability) -> Class {
    Class { mode: Mode::Strong, replicas, durability }
}

fn ids(nodes: &[NodeId]) -> Vec<u16> {
    nodes.iter().map(|node| node.0).collect()
}

#[test]
fn tables_of_one_class_share_partitions() {
    let config = cluster(
        3,
        4,
        "tables:
  - { index: 1, replicas: 1, durability: none }
  - { index: 2, durability: interval }
  - { index: 9, durability: interval }
",
    );
    let interval = class(3, Durability::Interval);
    let none = class(1, Durability::None);
    assert_eq!(config.classes(), [class(3, Durability::Sync), none, interval]);
    let of = |index| config.class_of_table(TableIndex::new(index).expect("a table"));
    assert_eq!([0, 1, 2, 3, 9, 15].map(of), [0, 1, 2, 0, 2, 0]);
    assert_eq!((config.partitions(), config.groups()), (4, 12));
    assert_eq!(config.class_of(PartitionId(3)).replicas, 3);
    assert_eq!([4, 7].map(|id| config.class_of(PartitionId(id))), [none; 2]);
    assert_eq!([8, 11].map(|id| config.class_of(PartitionId(id))), [interval; 2]);
}

#[test]
fn the_first_class_is_that_of_table_0_and_one_without_tables_is_none() {
    let listed: String = (0..16)
        .map(|index| match index {
            0 => "  - { index: 0, durability: interval }\n".to_owned(),
            _ => format!("  - {{ index: {index}, replicas: 1 }}\n"),
        })
        .collect();
    let config = cluster(3, 4, &format!("defaults: {{ replicas: 3 }}\ntables:\n{listed}"));
    let classes = [class(3, Durability::Interval), class(1, Durability::Sync)];
    assert_eq!(config.classes(), classes);
}

#[test]
fn runs_of_partitions_have_one_leader_and_the_next_nodes_follow() {
    let config = cluster(3, 12, "");
    let leaders: Vec<NodeId> = (0..12).map(|id| config.leader_of(PartitionId(id))).collect();
    assert_eq!(ids(&leaders), [10, 10, 10, 10, 20, 20, 20, 20, 30, 30, 30, 30]);
    let replicas = |id| ids(&config.replicas_of(PartitionId(id)));
    assert_eq!(replicas(0), [10, 20, 30]);
    assert_eq!(replicas(4), [20, 30, 10]);
    assert_eq!(replicas(11), [30, 10, 20]);
    let one = cluster(3, 12, "defaults: { replicas: 1 }");
    assert_eq!(ids(&one.replicas_of(PartitionId(11))), [30]);
    let many = cluster(5, 12, "");
    assert_eq!(ids(&many.replicas_of(PartitionId(11))), [50, 10, 20]);
}

/// The keys that the banner and every newcomer begin with: slots 15495, 3300, 7365 and 11298 of
/// 16384, a quarter of them apart.
#[test]
fn the_first_letters_lie_on_all_nodes() {
    let config = cluster(3, 12, "");
    let leaders: BTreeSet<NodeId> = [15495u32, 3300, 7365, 11298]
        .into_iter()
        .map(|slot| config.leader_of(PartitionId((slot * 12 / 16384) as u16)))
        .collect();
    assert_eq!(leaders.len(), 3);
}

#[test]
fn replicas_are_distinct_and_leaders_are_spread() {
    let classes = "defaults: { replicas: 1 }\ntables:
  - { index: 1, durability: none }
  - { index: 2, durability: interval }
";
    for nodes in 1..=9 {
        for partitions in 1..=40 {
            let config = cluster(nodes, partitions, classes);
            let mut leads: BTreeMap<NodeId, usize> =
                config.nodes().iter().map(|node| (node.id, 0)).collect();
            for (done, id) in (0..config.groups()).enumerate() {
                *leads.entry(config.leader_of(PartitionId(id))).or_default() += 1;
                if (done + 1) % usize::from(partitions) == 0 {
                    let (most, least) = (leads.values().max(), leads.values().min());
                    let uneven = most.zip(least).map_or(0, |(most, least)| most - least);
                    assert!(uneven <= 1, "{nodes} nodes, {partitions} partitions: {leads:?}");
                }
            }
            if nodes >= 3 {
                let replicated = cluster(nodes, partitions, "");
                for id in 0..partitions {
                    let replicas = replicated.replicas_of(PartitionId(id));
                    let distinct: BTreeSet<&NodeId> = replicas.iter().collect();
                    assert_eq!((replicas.len(), distinct.len()), (3, 3));
                    assert_eq!(replicas[0], replicated.leader_of(PartitionId(id)));
                }
            }
        }
    }
}
