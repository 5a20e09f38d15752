use std::net::{SocketAddr, TcpListener};

use super::requests::{ByKind, Kind};
use super::*;

/// A server of one question: how does it answer a SET, and how does it read?
fn serve(listener: &TcpListener, connections: usize, answer: &[u8], request_bytes: usize) {
    thread::scope(|scope| {
        for _ in 0..connections {
            let (mut socket, _) = listener.accept().expect("a client");
            scope.spawn(move || {
                let mut buffer = vec![0; 10_000];
                let mut read = 0;
                while let Ok(more @ 1..) = socket.read(&mut buffer) {
                    read += more;
                    let replies = answer.repeat(read / request_bytes);
                    read %= request_bytes;
                    if socket.write_all(&replies).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn sets(address: SocketAddr, clients: usize, until: Until) -> Load {
    Load {
        targets: vec![address.to_string()],
        clients,
        threads: 1,
        workload: Workload {
            mix: requests::Mix::only(Kind::Set),
            keys: 1000,
            key_size: 16,
            value_size: 8,
            multi: 1,
            pipeline: 4,
            wait: 0,
        },
        warmup: Duration::ZERO,
        until,
        seed: 1,
    }
}

/// Bytes of a SET as [`sets`] sends it with values of this size.
fn set_bytes(value_size: usize) -> usize {
    "*3\r\n$3\r\nSET\r\n$16\r\nkey:000000000000\r\n$\r\n\r\n".len()
        + value_size.to_string().len()
        + value_size
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    (listener, address)
}

#[test]
fn asks_exactly_as_often_as_told() {
    let (listener, address) = listen();
    let load = Load { threads: 2, ..sets(address, 3, Until::Requests(1001)) };
    let outcome = thread::scope(|scope| {
        scope.spawn(|| serve(&listener, 3, b"+OK\r\n", set_bytes(8)));
        load.run(|_, _| ControlFlow::Continue(())).expect("the server answers")
    });
    assert_eq!(outcome.tally.kinds, ByKind::from([0, 1001, 0, 0]));
    assert_eq!(outcome.tally.errors, 0);
}

#[test]
fn fills_every_key_and_says_which_answer_stopped_it() {
    let (listener, address) = listen();
    let load = sets(address, 2, Until::Requests(1));
    thread::scope(|scope| {
        scope.spawn(|| serve(&listener, 2, b"+OK\r\n", set_bytes(8)));
        let filled = load.fill().expect("the server answers");
        assert_eq!(filled.tally.of(Kind::Set), 1000);
    });
    let refused = thread::scope(|scope| {
        scope.spawn(|| serve(&listener, 2, b"-OOM full\r\n", set_bytes(8)));
        load.fill().expect_err("every SET fails")
    });
    assert!(matches!(refused, LoadError::NotFilled(1000, first) if first == "OOM full"));
}

#[test]
fn counts_errors_and_keeps_the_first() {
    let (listener, address) = listen();
    let outcome = thread::scope(|scope| {
        scope.spawn(|| serve(&listener, 1, b"-ERR no\r\n", set_bytes(8)));
        sets(address, 1, Until::Requests(10))
            .run(|_, _| ControlFlow::Continue(()))
            .expect("errors are answers")
    });
    assert_eq!((outcome.tally.operations(), outcome.tally.errors), (10, 10));
    assert_eq!(outcome.tally.first_error.as_deref(), Some("ERR no"));
}

#[test]
fn a_batch_larger_than_the_socket_arrives_whole() {
    let (listener, address) = listen();
    let value_size = 1_000_000;
    let mut load = sets(address, 2, Until::Requests(40));
    load.workload = Workload { value_size, pipeline: 10, ..load.workload };
    let outcome = thread::scope(|scope| {
        scope.spawn(|| serve(&listener, 2, b"+OK\r\n", set_bytes(value_size)));
        load.run(|_, _| ControlFlow::Continue(())).expect("the server answers")
    });
    assert_eq!(outcome.tally.operations(), 40);
}

#[test]
fn the_warm_up_is_not_counted_and_seconds_are_told() {
    let (listener, address) = listen();
    let warmup = Duration::from_millis(50);
    let until = Until::Elapsed(Duration::from_millis(1050));
    let load = Load { warmup, ..sets(address, 1, until) };
    let mut told = Vec::new();
    let outcome = thread::scope(|scope| {
        scope.spawn(|| serve(&listener, 1, b"+OK\r\n", set_bytes(8)));
        let tell = |second, tally: &Tally| {
            told.push((second, tally.operations()));
            ControlFlow::Continue(())
        };
        load.run(tell).expect("it answers")
    });
    assert_eq!(told.len(), 1, "the partial second is not told: {told:?}");
    assert!(told[0].0 == 1 && (1..outcome.tally.operations()).contains(&told[0].1));
    assert!(outcome.elapsed >= Duration::from_millis(1050));
}

#[test]
fn a_closed_connection_ends_the_load() {
    let (listener, address) = listen();
    let lost = thread::scope(|scope| {
        scope.spawn(|| drop(listener.accept()));
        let until = Until::Elapsed(Duration::from_secs(60));
        sets(address, 1, until)
            .run(|_, _| ControlFlow::Continue(()))
            .expect_err("the server has gone")
    });
    assert!(matches!(lost, LoadError::Lost(..)), "{lost}");
}

#[test]
fn too_many_replies_end_the_load() {
    let (listener, address) = listen();
    let unasked = thread::scope(|scope| {
        scope.spawn(|| serve(&listener, 1, b"+OK\r\n+OK\r\n", set_bytes(8)));
        sets(address, 1, Until::Requests(100))
            .run(|_, _| ControlFlow::Continue(()))
            .expect_err("more than asked")
    });
    assert!(matches!(unasked, LoadError::Unasked(_)), "{unasked}");
}

#[test]
fn tells_a_server_that_is_down_from_one_that_loads() {
    let (listener, address) = listen();
    let load = sets(address, 1, Until::Requests(1));
    let loading = thread::scope(|scope| {
        let answer = b"-LOADING waiting for nodes 2, 3\r\n";
        let exists_bytes = "*2\r\n$6\r\nEXISTS\r\n$16\r\nkey:000000000000\r\n".len();
        scope.spawn(move || serve(&listener, 1, answer, exists_bytes));
        load.probe().expect_err("it loads")
    });
    let expected = format!("{address} is not ready: LOADING waiting for nodes 2, 3");
    assert_eq!(loading.to_string(), expected);
    // The listener is gone.
    let down = load.probe().expect_err("nobody listens");
    assert!(down.to_string().starts_with(&format!("cannot reach {address}: ")), "{down}");
}

#[test]
fn a_second_is_told_when_all_workers_have_ended_it() {
    let (reports, inbox) = mpsc::channel();
    let report = |second, whole, gets| {
        let mut tally = Tally::default();
        tally.record([gets, 0, 0, 0], Duration::from_micros(1));
        reports.send(Report { second, whole, tally }).expect("the inbox is open");
    };
    report(1, true, 1);
    report(2, true, 10);
    report(1, true, 100);
    report(2, false, 1000);
    drop(reports);
    let mut told = Vec::new();
    let total = collect(&inbox, 2, |second, tally| told.push((second, tally.operations())));
    assert_eq!(told, [(1, 101)]);
    assert_eq!(total.operations(), 1111);
}
