use super::*;

fn local(nodes: u16) -> Config {
    Config::local(nodes, 7000).expect("valid")
}

#[test]
fn the_sample_is_valid_and_its_nodes_are_the_local_ones() {
    let sample = Config::parse("cluster.yaml", include_str!("../../cluster.yaml")).expect("valid");
    assert_eq!(sample.nodes, local(3).nodes);
    assert_eq!(sample.cluster, "quorate");
    assert_eq!(sample.classes()[0], local(3).classes()[0]);
    assert_eq!(sample.replication, Replication::default());
    assert_eq!(sample.limits, Limits::default());
    assert_eq!(sample.data_of(NodeId(2)), Path::new("./data/node-2"));
}

/// What stands in the sample as a comment is said to be the default: it must be valid, and be it.
#[test]
fn the_comments_of_the_sample_are_the_defaults() {
    let text = include_str!("../../cluster.yaml");
    let setting = |line: &str| {
        let name = line.split(':').next().unwrap_or_default().trim_start();
        line.contains(':') && !name.is_empty() && !name.contains(' ')
    };
    let uncommented: String = text
        .lines()
        .filter(|line| !line.starts_with("# bind") && !line.starts_with("# arbiters"))
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if setting(rest) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    for last in ["\n  failover_wait: 5s", "\n  retain: 16MiB"] {
        assert!(uncommented.contains(last), "{uncommented}");
    }
    let sample = Config::parse("cluster.yaml", text).expect("valid");
    assert_eq!(Config::parse("uncommented", &uncommented).expect("valid"), sample);
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
fn a_local_cluster_has_the_class_it_is_given() {
    let class = |nodes, replicas, durability| {
        let config = local(nodes).with_class(replicas, durability);
        config.map(|config| config.classes()[0].to_string()).map_err(|error| error.to_string())
    };
    assert_eq!(class(3, None, None).as_deref(), Ok("strong,3,sync"));
    assert_eq!(class(2, None, None).as_deref(), Ok("strong,1,sync"));
    assert_eq!(class(1, None, None).as_deref(), Ok("strong,1,sync"));
    assert_eq!(class(5, None, Some(Durability::Interval)).as_deref(), Ok("strong,3,interval"));
    assert_eq!(class(3, Some(1), Some(Durability::None)).as_deref(), Ok("strong,1,none"));
    let problem = |nodes, replicas, durability| class(nodes, replicas, durability).unwrap_err();
    assert_eq!(
        problem(3, Some(5), None),
        "--replicas: 5 is out of range; in a cluster of 3 nodes it may be 1 or 3"
    );
    assert_eq!(
        problem(3, None, Some(Durability::None)),
        "--durability: durability none keeps no log, and acknowledged writes of replicated tables \
         need one; use sync or interval, or 1 replica"
    );
}

#[test]
fn the_strongest_is_the_greatest() {
    assert!(Durability::None < Durability::Interval && Durability::Interval < Durability::Sync);
    let class = |replicas, durability| Class { mode: Mode::Strong, replicas, durability };
    assert!(class(1, Durability::None) < class(1, Durability::Sync));
    assert!(class(1, Durability::Sync) < class(3, Durability::Interval));
    assert!(class(3, Durability::Interval) < class(3, Durability::Sync));
}

#[test]
fn the_digest_is_of_what_forms_the_cluster_and_nothing_else() {
    let digest = local(3).digest("1 2 3");
    // Nodes of different builds compare it: this number may change with the protocol only.
    assert_eq!(digest, 15_086_097_022_756_660_684);

    let same = Config {
        bind: Some("0.0.0.0".to_owned()),
        arbiters: 9,
        limits: Limits { key: 1, ..Limits::default() },
        log_level: LevelFilter::Trace,
        data: "elsewhere".into(),
        replication: Replication { segment: 1, ..Replication::default() },
        ..local(3)
    };
    assert_eq!(same.digest("1 2 3"), digest);

    assert_ne!(local(3).digest("1 2 1"), digest, "placed in another way");
    assert_ne!(local(2).digest("1 2 3"), digest);
    assert_ne!(Config { partitions: 13, ..local(3) }.digest("1 2 3"), digest);
    for change in [
        |node: &mut Node| node.id = NodeId(9),
        |node: &mut Node| node.host = "b".to_owned(),
        |node: &mut Node| node.client = 1,
        |node: &mut Node| node.peer = 1,
        |node: &mut Node| node.http = 1,
    ] {
        let mut other = local(3);
        change(&mut other.nodes[2]);
        assert_ne!(other.digest("1 2 3"), digest);
    }
    let interval = Class { durability: Durability::Interval, ..local(3).classes()[0] };
    for class in [interval, Class { replicas: 1, ..interval }] {
        assert_ne!(with_table(3, class).digest("1 2 3"), digest);
    }
    let mut slower = local(3);
    slower.replication.election_timeout *= 2;
    assert_ne!(slower.digest("1 2 3"), digest);
}

/// The local cluster of three nodes with one table of another class.
fn with_table(index: usize, class: Class) -> Config {
    let mut config = local(3);
    config.tables[index].class = class;
    config.classes = Classes::of(&config.tables);
    config
}

#[test]
fn the_layout_is_of_what_lies_where_and_nothing_else() {
    let layout = local(3).layout();
    // It is on disks: these words may change with the format of what is there only.
    let tables = ["0"; 16].join(" ");
    let expected = [
        ("partitions", "12"),
        ("nodes", "1 2 3"),
        ("classes", "strong,3,disk"),
        ("tables", &tables),
    ];
    assert_eq!(layout, expected.map(|(name, value)| (name, value.to_owned())));

    let mut moved = local(3);
    moved.nodes[0].host = "b".to_owned();
    moved.nodes[1].client = 1;
    moved.replication.election_timeout *= 2;
    moved.data = "elsewhere".into();
    assert_eq!(moved.layout(), layout);
    let weaker = local(3).with_class(None, Some(Durability::Interval)).expect("valid");
    assert_eq!(weaker.layout(), layout, "the same partitions at the same places");

    assert_ne!(local(5).layout(), layout);
    assert_ne!(Config { partitions: 13, ..local(3) }.layout(), layout);
    let cache = local(3).with_class(Some(1), Some(Durability::None)).expect("valid");
    assert_eq!(cache.layout(), [], "nothing lies anywhere");
    assert_ne!(local(3).with_class(Some(1), None).expect("valid").layout(), layout);
    let interval = Class { durability: Durability::Interval, ..local(3).classes()[0] };
    assert_ne!(with_table(3, interval).layout(), layout, "table 3 has partitions of its own");
    assert_ne!(with_table(3, interval).layout(), with_table(4, interval).layout());
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
