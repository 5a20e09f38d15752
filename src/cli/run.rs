//! Runs nodes until they are told to stop: the one place that makes arbiters.

use super::clock::{clocks, wall_clock};
use super::{descriptors, failpoint};
use crate::actors::node::{Arbiters, Birth, Node, start};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::ids::{Millis, NodeId};
use crate::logging;
use crate::metrics::Usage;
use actix_rt::{Arbiter, System};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// What this process takes of the machine; none where there is no Linux to tell it.
fn usage() -> Option<Usage> {
    /// The kernel tells times in ticks of a hundredth of a second, whatever its own clock does.
    const TICKS: f64 = 100.0;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = resident.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field, a name in brackets, may hold anything: count from its end.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map(str::parse::<f64>);
    let (own, kernel) = (times.next()?.ok()?, times.next()?.ok()?);
    Some(Usage {
        resident: kibibytes * 1024,
        kernel_seconds: kernel / TICKS,
        own_seconds: own / TICKS,
    })
}

/// Runs these nodes of a cluster in this process until SIGINT or SIGTERM. `ready` is called once
/// all of them serve, with the milliseconds that took.
pub fn run(mut config: Config, nodes: &[NodeId], ready: impl FnOnce(&Config, u64)) -> Result<()> {
    // Before the first thread: each needs some.
    descriptors::fit(&mut config, nodes.len())?;
    let config = Arc::new(config);
    let started = wall_clock();
    System::new().block_on(async {
        // From here on a signal is heard, even while the nodes read their disks.
        let mut stopping = std::pin::pin!(told_to_stop()?);
        let mut arbiters = Vec::new();
        let mut running = Vec::new();
        let others_go_on = nodes.len() < config.nodes().len();
        let served = async {
            for &id in nodes {
                running.push(launch(config.clone(), id, started, &mut arbiters).await?);
            }
            Ok(())
        };
        // A node may wait long for room on its disk.
        let served = tokio::select! {
            biased;
            () = &mut stopping => None,
            served = served => Some(served),
        };
        match served {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                stop(running, others_go_on).await;
                return Err(error);
            }
            None => {
                stop(running, others_go_on).await;
                return Ok(());
            }
        }
        let formed: Vec<oneshot::Receiver<()>> = running.iter_mut().map(Running::formed).collect();
        let serving = async {
            for formed in formed {
                // The node tells, or is gone and tells by that.
                let _ = formed.await;
            }
        };
        tokio::select! {
            biased;
            () = &mut stopping => {
                stop(running, others_go_on).await;
                return Ok(());
            }
            () = serving => ready(&config, wall_clock().0.saturating_sub(started.0)),
        }
        stopping.await;
        stop(running, others_go_on).await;
        Ok(())
    })
}

/// A node on its arbiters, as the main thread holds it.
struct Running {
    id: NodeId,
    formed: Option<oneshot::Receiver<()>>,
    /// Says whether other nodes of the cluster go on.
    stop: oneshot::Sender<bool>,
    stopped: oneshot::Receiver<()>,
}

impl Running {
    fn formed(&mut self) -> oneshot::Receiver<()> {
        self.formed.take().unwrap_or_else(|| oneshot::channel().1)
    }
}

/// Starts a node on arbiters of its own.
async fn launch(
    config: Arc<Config>,
    id: NodeId,
    started: Millis,
    arbiters: &mut Vec<Arbiter>,
) -> Result<Running> {
    let own: Vec<Arbiter> = (0..config.arbiters).map(|_| Arbiter::new()).collect();
    let handles: Vec<_> = own.iter().map(Arbiter::handle).collect();
    for handle in &handles {
        handle.spawn_fn(move || logging::set_node(id));
    }
    let disks = [Arbiter::new(), Arbiter::new()];
    let [log, archive] = [&disks[0], &disks[1]].map(Arbiter::handle);
    for handle in [&log, &archive] {
        handle.spawn_fn(move || logging::set_node(id));
    }
    let birth = Birth {
        clock: clocks,
        usage,
        started,
        boot,
        stop: give_up,
        failpoint: failpoint::armed()?,
    };
    let (tell_begun, begun) = oneshot::channel();
    let (stop, told_to_stop) = oneshot::channel();
    let (tell_stopped, stopped) = oneshot::channel();
    let on = Arbiters::On { buckets: handles.clone(), log, archive };
    let lost = || Error::Io("starting a node".into(), std::io::Error::other("its thread ended"));
    let Some(first) = handles.first() else { return Err(lost()) };
    first.spawn(async move {
        let mut node: Node = match start(config, id, on, birth).await {
            Ok(node) => node,
            Err(error) => {
                // The main thread waits for this.
                let _ = tell_begun.send(Err(error));
                return;
            }
        };
        let formed = node.take_formed();
        let _ = tell_begun.send(Ok(formed));
        // Dropping the sender says stop as well.
        let others_go_on = told_to_stop.await.unwrap_or_default();
        node.stop(others_go_on).await;
        let _ = tell_stopped.send(());
    });
    arbiters.extend(own);
    arbiters.extend(disks);
    let formed = begun.await.map_err(|_| lost())??;
    Ok(Running { id, formed, stop, stopped })
}

/// Which boot of the machine this is: what was not synced is lost with it.
pub(super) fn boot() -> String {
    // Elsewhere than on Linux every start counts as one after a power cut.
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// What to do about data that was damaged or is missing.
pub const LOST: &str = "; put it back as it was, or move the node's data directory away and start it \
                        again: it then learns from the other nodes, under a new name";

/// Ends the process: a node that cannot write its log has nothing more to promise.
fn give_up(why: &str) {
    log::error!(target: "node", "{why}; stopping");
    logging::last(&format!("quorate: {why}; stopping"));
    std::process::exit(1);
}

async fn stop(running: Vec<Running>, others_go_on: bool) {
    let mut waiting = Vec::new();
    for Running { id, stop, stopped, .. } in running {
        log::info!(target: "node", "stopping node {id}");
        // A node that is gone has stopped.
        let _ = stop.send(others_go_on);
        waiting.push(stopped);
    }
    for stopped in waiting {
        let _ = stopped.await;
    }
}

/// Listens for SIGINT and SIGTERM at once; what it returns waits for one.
fn told_to_stop() -> Result<impl Future<Output = ()>> {
    let listen =
        |kind| signal(kind).map_err(|error| Error::Io("listening for signals".into(), error));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            biased;
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Tells the operator what is wrong, and the shell by the exit code.
pub fn report(error: &Error, advice: &str) -> ExitCode {
    logging::last(&format!("quorate: {error}{advice}"));
    ExitCode::from(error.exit_code())
}
