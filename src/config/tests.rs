use super::*;

fn local(nodes: u16) -> Config {
    Config::local(nodes, 7000).expect("valid")
}

#[test]
fn the_sample_is_valid_and_the_local_cluster_in_a_file() {
    let sample = Config::parse("cluster.yaml", include_str!("../cluster.yaml")).expect("valid");
    assert_eq!(sample.nodes, local(3).nodes);
    assert_eq!(sample.cluster, "quorate");
    assert_eq!(sample.digest(), local(3).digest());
}

#[test]
fn a_local_cluster_has_the_ports_of_its_base() {
    let config = local(3);
    let node = config.node(NodeId(2)).expect("listed");
    assert_eq!((node.client, node.peer, node.http), (7002, 7102, 7202));
    assert!(config.node(NodeId(4)).is_none());
    let refused = |nodes, base| Config::local(nodes, base).expect_err("refused").to_string();
    assert_eq!(refused(0, 7000), "--nodes 0 is out of range; it may be 1 to 64");
    assert_eq!(refused(65, 7000), "--nodes 65 is out of range; it may be 1 to 64");
    assert_eq!(
        refused(3, 65333),
        "--port 65333 is too high: 3 nodes use ports up to 65536; it may be up to 65332"
    );
    assert!(Config::local(3, 65332).is_ok());
}

#[test]
fn partitions_are_dealt_in_turn() {
    let config = local(3);
    let leaders: Vec<u16> = (0..7).map(|p| config.leader_of(PartitionId(p)).0).collect();
    assert_eq!(leaders, [1, 2, 3, 1, 2, 3, 1]);
}

#[test]
fn the_digest_is_of_what_forms_the_cluster_and_nothing_else() {
    let digest = local(3).digest();
    // Nodes of different builds compare it: this number may change with the protocol only.
    assert_eq!(digest, 7_133_102_325_899_164_776);

    let same = Config {
        bind: Some("0.0.0.0".to_owned()),
        arbiters: 9,
        limits: Limits { key: 1, ..Limits::default() },
        log_level: LevelFilter::Trace,
        ..local(3)
    };
    assert_eq!(same.digest(), digest);

    assert_ne!(local(2).digest(), digest);
    assert_ne!(Config { partitions: 13, ..local(3) }.digest(), digest);
    for change in [
        |node: &mut Node| node.id = NodeId(9),
        |node: &mut Node| node.host = "b".to_owned(),
        |node: &mut Node| node.client = 1,
        |node: &mut Node| node.peer = 1,
        |node: &mut Node| node.http = 1,
    ] {
        let mut other = local(3);
        change(&mut other.nodes[2]);
        assert_ne!(other.digest(), digest);
    }
    let mut other = local(3);
    other.tables[3].class.replicas = 3;
    assert_ne!(other.digest(), digest);
}

#[test]
fn clusters_of_different_names_place_keys_differently() {
    let other = Config { cluster: "other".to_owned(), ..local(3) };
    assert_ne!(other.hash_seed(), local(3).hash_seed());
    assert_eq!(local(3).hash_seed(), local(5).hash_seed());
}

#[test]
fn fnv1a_is_the_published_one() {
    assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
    assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load(Path::new("/nowhere/cluster.yaml")).expect_err("missing");
    let text = error.to_string();
    assert!(text.starts_with("cannot read /nowhere/cluster.yaml: "), "{text}");
    assert_eq!(error.exit_code(), 2);
}
