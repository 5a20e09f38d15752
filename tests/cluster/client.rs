//! The client role beside a real redis-cli: the same commands, the same server, the same output.

use crate::harness::{Cluster, Process, binary, eventually, free_port};
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Runs redis-cli and the client role with the same arguments, the same input.
fn both(port: u16, args: &[&str], input: Option<&[u8]>) -> [Output; 2] {
    let port = port.to_string();
    let mut redis_cli = Command::new("redis-cli");
    let mut client = Command::new(binary());
    client.args(["--role", "client"]);
    [&mut redis_cli, &mut client].map(|command| {
        command.args(["-p", &port]).args(args);
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("redis-cli and the binary start");
        if let Some(input) = input {
            let mut pipe = child.stdin.take().expect("a pipe");
            pipe.write_all(input).expect("somebody reads");
        }
        child.wait_with_output().expect("an end")
    })
}

#[track_caller]
fn assert_same(port: u16, args: &[&str], input: Option<&[u8]>) {
    let [theirs, ours] = both(port, args, input);
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text(&ours), text(&theirs), "{args:?} {:?}", input.map(<[u8]>::escape_ascii));
}

/// Lines whose second run is answered as the first was, for both clients run them in turn.
const LINES: &str = r#"
set greeting "hello \"world\"\n\x00\xff"
GET greeting
get 'it\'s absent'
set n 41
incr n
incrbyfloat n 0.5
incr greeting
mset a 1 b 2 c ""
mget a b absent c
mget greeting
del a b c n
exists a
nonsense
nonsense "with words" 'in quotes'
get
set a
command info get set nonsense
command count nonsense
config get maxmemory
echo "tab\there"
echo 'single \n \'quoted\''
echo "\xe2\x82\xac"
3 echo thrice
"unbalanced
echo "a"b
ping
  
select 1
set here 1
select 99
select 0
exists here
client setname shell
client getname
command getkeys mset a 1 b 2
quit
echo never
"#;

#[test]
fn prints_what_redis_cli_prints() {
    let cluster = Cluster::start();
    let port = cluster.ports(2).client;
    for style in ["--no-raw", "--raw"] {
        assert_same(port, &[style], Some(LINES.as_bytes()));
        assert_same(port, &[style, "-3"], Some(LINES.as_bytes()));
        for words in [
            &["set", "k", "v with spaces"][..],
            &["get", "k"],
            &["get", "absent"],
            &["get", "k", "-n", "--raw"],
            &["mget", "k", "absent", "k"],
            &["mset", "k", "1", "l"],
            &["exists", "k", "k"],
            &["command", "info", "get"],
            &["-n", "3", "set", "k", "-1"],
            &["-n", "3", "get", "k"],
            &["-3", "command", "docs", "get"],
            &["-3", "config", "get", "proto*"],
            &["client", "getname"],
        ] {
            assert_same(port, &[&[style], words].concat(), None);
        }
    }
    // What is no terminal gets bare replies without being asked.
    assert_same(port, &["mget", "k", "absent"], None);
}

#[test]
fn the_exit_status_tells_of_errors() {
    let cluster = Cluster::start();
    let port = cluster.ports(1).client;
    let code = |args: &[&str], input: Option<&[u8]>| both(port, args, input)[1].status.code();
    assert_eq!(code(&["ping"], None), Some(0));
    assert_eq!(code(&["get", "absent"], None), Some(0));
    assert_eq!(code(&["nonsense"], None), Some(1));
    assert_eq!(code(&[], Some(b"ping\nset a 1\n")), Some(0));
    assert_eq!(code(&[], Some(b"ping\nset a\nping\n")), Some(1));
    let [_, ours] = both(port, &[], Some(b"set a\nping\n"));
    assert!(ours.stdout.ends_with(b"PONG\n"), "a line's error does not stop the next: {ours:?}");
}

#[test]
fn says_when_nobody_listens() {
    let port = free_port();
    let [_, ours] = both(port, &["ping"], None);
    assert_eq!(ours.status.code(), Some(1));
    let expected = format!("Could not connect to 127.0.0.1:{port}: Connection refused\n");
    assert_eq!(String::from_utf8_lossy(&ours.stderr), expected);
}

/// A terminal, as far as the shell can tell: `script` holds the other end.
#[test]
fn a_terminal_has_a_prompt_and_the_shell_connects_again() {
    let mut cluster = Cluster::start();
    let port = cluster.ports(3).client;
    let typed = cluster.write("typed", "");
    let seen = cluster.write("seen", "");
    let shell = format!("{} --role client -p {port}", binary().display());
    let mut command = Command::new("script");
    command.args(["--quiet", "--flush", "--command", &shell]).arg("/dev/null");
    command.env("QUORATE_HISTORY", &typed).env("TERM", "dumb");
    command.stdin(Stdio::piped());
    command.stdout(std::fs::File::create(&seen).expect("a file")).stderr(Stdio::null());
    let mut child = command.spawn().expect("script(1) starts");
    let mut keys = child.stdin.take().expect("a pipe");
    let mut terminal = Process::adopt(child);
    let wait = |text: &str| {
        eventually(&format!("the terminal shows {text:?}"), crate::harness::PATIENCE, || {
            let shown = std::fs::read(&seen).expect("what was shown");
            String::from_utf8_lossy(&shown).contains(text).then_some(())
        });
    };
    let mut type_line = |line: &str| keys.write_all(line.as_bytes()).expect("a terminal");

    wait(&format!("127.0.0.1:{port}> "));
    type_line("select 1\n");
    wait(&format!("127.0.0.1:{port}[1]> "));
    type_line("strlen absent\n");
    wait("(integer) 0");
    cluster.kill(3);
    type_line("ping one\n");
    wait(&format!("Could not connect to 127.0.0.1:{port}: Connection refused"));
    wait("not connected> ");
    cluster.spawn(3);
    cluster.wait_ready(3);
    type_line("echo again\n");
    wait("\"again\"");
    type_line("exit\n");
    assert!(terminal.wait().success());
    let history = std::fs::read_to_string(&typed).expect("the history");
    assert!(history.contains("strlen absent"), "{history}");
}
