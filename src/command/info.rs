//! `INFO`: a node's figures under Redis's section and field names.

use super::argv::Argv;
use super::facts::{Calls, Facts, REDIS_VERSION, runs};
use std::fmt::{Display, Write as _};

/// The report of the sections asked for: all of them when none is named.
pub(super) fn report(facts: &Facts, asked: Argv<'_>) -> String {
    let asked_for = |section: &str| {
        let names = |word: &[u8]| {
            let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
            let always = section != "Commandstats" && is("default");
            is(section) || always || is("all") || is("everything")
        };
        asked.is_empty() && section != "Commandstats" || asked.from(0).any(names)
    };
    type Lines = fn(&Facts, &mut InfoSection);
    let sections: [(&str, Lines); 12] = [
        ("Server", server),
        ("Clients", clients),
        ("Memory", memory),
        ("Persistence", persistence),
        ("Stats", stats),
        ("Replication", replication),
        ("CPU", cpu),
        ("Commandstats", commandstats),
        ("Errorstats", errorstats),
        ("Transactions", transactions),
        ("Cluster", cluster),
        ("Keyspace", keyspace),
    ];
    let mut report = String::new();
    for (name, write) in sections {
        if !asked_for(name) {
            continue;
        }
        let mut section = InfoSection::default();
        write(facts, &mut section);
        if !report.is_empty() {
            report.push_str("\r\n");
        }
        report.push_str(&format!("# {name}\r\n{}", section.lines));
    }
    report
}

/// A section's lines.
#[derive(Default)]
struct InfoSection {
    lines: String,
}

impl InfoSection {
    fn field(&mut self, name: &str, value: impl Display) {
        // Writing to a string does not fail.
        let _ = write!(self.lines, "{name}:{value}\r\n");
    }

    /// A field that is left out when it is not measured.
    fn measured(&mut self, name: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.field(name, value);
        }
    }

    /// Bytes, once as a number and once for people.
    fn bytes(&mut self, name: &str, bytes: u64) {
        self.field(name, bytes);
        self.field(&format!("{name}_human"), human(bytes));
    }
}

/// A number of bytes as Redis shows it to people.
fn human(bytes: u64) -> String {
    let units = [("B", 0), ("K", 10), ("M", 20), ("G", 30), ("T", 40)];
    let within = |(_, shift): &&(&str, u32)| *shift == 0 || bytes >> shift > 0;
    match units.iter().rev().find(within) {
        Some((unit, shift)) if *shift > 0 => {
            format!("{:.2}{unit}", bytes as f64 / (1u64 << shift) as f64)
        }
        _ => format!("{bytes}B"),
    }
}

fn server(facts: &Facts, section: &mut InfoSection) {
    let uptime = facts.now.0.saturating_sub(facts.started_at.0) / 1000;
    section.field("redis_version", REDIS_VERSION);
    section.field("redis_mode", "standalone");
    section.field("quorate_version", env!("CARGO_PKG_VERSION"));
    section.field("quorate_node", facts.node);
    section.field("quorate_nodes", facts.nodes);
    section.field("os", &facts.os);
    section.field("arch_bits", usize::BITS);
    section.field("process_id", facts.process_id);
    section.field("run_id", &facts.run_id);
    section.field("tcp_port", facts.port);
    section.field("server_time_usec", facts.now.0.saturating_mul(1000));
    section.field("uptime_in_seconds", uptime);
    section.field("uptime_in_days", uptime / 86_400);
    section.field("config_file", &facts.config_file);
}

fn clients(facts: &Facts, section: &mut InfoSection) {
    section.field("connected_clients", facts.clients_connected);
    section.field("maxclients", facts.settings.number("maxclients"));
    section.field("blocked_clients", facts.clients_blocked);
    section.field("total_watched_keys", facts.keys_watched);
}

fn memory(facts: &Facts, section: &mut InfoSection) {
    section.bytes("used_memory", facts.memory_tables);
    section.bytes("used_memory_peak", facts.memory_peak);
    section.bytes("maxmemory", facts.settings.size("maxmemory") as u64);
    section.field("maxmemory_policy", facts.settings.get("maxmemory-policy").unwrap_or_default());
    section.field("mem_allocator", "mimalloc");
    if let Some(resident) = facts.memory_resident {
        section.bytes("used_memory_rss", resident);
    }
}

fn stats(facts: &Facts, section: &mut InfoSection) {
    section.field("total_connections_received", facts.connections_total);
    section.field("total_commands_processed", facts.commands_total);
    section.field("instantaneous_ops_per_sec", facts.commands_per_second);
    let kibibytes = |bytes: u64| format!("{:.2}", bytes as f64 / 1024.0);
    section.field("instantaneous_input_kbps", kibibytes(facts.bytes_per_second.0));
    section.field("instantaneous_output_kbps", kibibytes(facts.bytes_per_second.1));
    section.measured("total_net_input_bytes", facts.input_bytes);
    section.measured("total_net_output_bytes", facts.output_bytes);
    section.field("rejected_connections", facts.connections_rejected);
    section.measured("expired_keys", facts.expired_total);
    // What is full refuses to grow; nothing is thrown away.
    section.field("evicted_keys", 0);
    section.measured("keyspace_hits", facts.hits_total);
    section.measured("keyspace_misses", facts.misses_total);
    section.measured("total_error_replies", facts.errors_total);
}

/// What is on disk. `aof_enabled` says that acknowledged writes of table 0 are.
fn persistence(facts: &Facts, section: &mut InfoSection) {
    let durability = facts.classes.first().map_or("none", |class| class.durability);
    section.field("loading", 0);
    section.field("async_loading", 0);
    section.field("rdb_bgsave_in_progress", 0);
    section.field("aof_enabled", u8::from(durability != "none"));
    section.field("aof_rewrite_in_progress", 0);
    // A node whose disk refuses stops.
    section.field("aof_last_write_status", "ok");
    section.field("quorate_durability", durability);
    if let Some(log) = &facts.log {
        section.field("aof_current_size", log.bytes);
        section.field("quorate_log_segments", log.segments);
        section.field("quorate_log_bytes", log.bytes);
        section.field("quorate_log_appended_bytes", log.appended);
        section.field("quorate_log_batches", log.batches);
        section.field("quorate_log_syncs", log.syncs);
    }
}

fn replication(facts: &Facts, section: &mut InfoSection) {
    // To clients the cluster is one server that takes writes.
    section.field("role", "master");
    section.field("connected_slaves", 0);
    let Some(class) = facts.classes.first() else { return };
    section.field("quorate_replicas", class.replicas);
    section.field("quorate_partitions_led", facts.led_and_held.0);
    section.field("quorate_partitions_held", facts.led_and_held.1);
    for (number, class) in facts.classes.iter().enumerate() {
        let tables = runs(class.tables.iter().map(|table| u16::from(*table))).replace(", ", " ");
        let (replicas, durability) = (class.replicas, class.durability);
        let text = format!("replicas={replicas},durability={durability},tables={tables}");
        section.field(&format!("quorate_class{number}"), text);
    }
}

fn cpu(facts: &Facts, section: &mut InfoSection) {
    if let Some((kernel, own)) = facts.cpu_seconds {
        section.field("used_cpu_sys", format_args!("{kernel:.6}"));
        section.field("used_cpu_user", format_args!("{own:.6}"));
    }
}

fn commandstats(facts: &Facts, section: &mut InfoSection) {
    for (name, Calls { calls, nanos, rejected, failed }) in &facts.calls {
        let each = *nanos as f64 / 1000.0 / (*calls).max(1) as f64;
        let usec = nanos / 1000;
        let figures = format_args!(
            "calls={calls},usec={usec},usec_per_call={each:.2},rejected_calls={rejected},\
             failed_calls={failed}"
        );
        section.field(&format!("cmdstat_{name}"), figures);
    }
}

fn errorstats(facts: &Facts, section: &mut InfoSection) {
    for (kind, count) in &facts.errors {
        section.field(&format!("errorstat_{kind}"), format_args!("count={count}"));
    }
}

fn transactions(facts: &Facts, section: &mut InfoSection) {
    let (committed, aborted, wounded) = facts.transactions;
    section.field("quorate_transactions_committed", committed);
    section.field("quorate_transaction_attempts_aborted", aborted);
    section.field("quorate_transaction_attempts_wounded", wounded);
    section.field("quorate_requests_waiting_for_locks", facts.lock_waiting);
}

fn cluster(_: &Facts, section: &mut InfoSection) {
    section.field("cluster_enabled", 0);
}

fn keyspace(facts: &Facts, section: &mut InfoSection) {
    for table in facts.tables.iter().filter(|table| table.keys > 0) {
        let figures = format_args!("keys={},expires={}", table.keys, table.volatile);
        section.field(&format!("db{}", table.index), figures);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::argv::ArgvBuf;
    use crate::command::facts::TableFacts;
    use crate::ids::Millis;

    fn ask(sections: &[&str]) -> String {
        let facts = Facts {
            now: Millis(90_061_500),
            commands_total: 12,
            hits_total: Some(7),
            tables: vec![
                TableFacts { index: 0, keys: 3, volatile: 1 },
                TableFacts { index: 1, keys: 0, volatile: 0 },
            ],
            ..Facts::default()
        };
        report(&facts, sections.iter().collect::<ArgvBuf>().argv())
    }

    #[test]
    fn sections_come_in_order_and_by_name() {
        let all = ask(&[]);
        assert!(all.starts_with("# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n"));
        assert!(all.contains("\r\nuptime_in_seconds:90061\r\nuptime_in_days:1\r\n"));
        assert!(all.ends_with(
            "\r\n\r\n# Cluster\r\ncluster_enabled:0\r\n\r\n# Keyspace\r\ndb0:keys=3,expires=1\r\n"
        ));
        assert!(!all.contains("Commandstats") && ask(&["all"]).contains("# Commandstats\r\n"));
        let two = ask(&["KEYSPACE", "replication"]);
        let expected = "# Replication\r\nrole:master\r\nconnected_slaves:0\r\n\r\n# Keyspace\r\ndb0:keys=3,expires=1\r\n";
        assert_eq!(two, expected);
        assert_eq!(ask(&["nonsense"]), "");
    }

    #[test]
    fn what_nobody_measures_is_not_reported() {
        let stats = ask(&["stats"]);
        assert!(stats.contains("keyspace_hits:7\r\n"));
        assert!(!stats.contains("keyspace_misses"));
    }

    #[test]
    fn bytes_for_people() {
        let shown = [0, 1023, 1024, 1536, 5 << 20, 3 << 30].map(human);
        assert_eq!(shown, ["0B", "1023B", "1.00K", "1.50K", "5.00M", "3.00G"]);
    }
}
