//! Questions that are asked until they are answered: of another node, when one does not.
//!
//! Only what may happen twice is asked so. A question whose answer was lost may have been carried
//! out, and is asked again all the same.

use super::Cluster;
use crate::cli::client::link::Link;
use crate::net::resp::Value;
use std::time::Duration;
use tokio::time::Instant;

/// The first pause before a question is repeated; each is twice as long as the one before.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// A node that says nothing for so long is taken for lost.
const SILENCE: Duration = Duration::from_secs(30);

/// Nodes that may say nothing for one caller's patience: the one after them is asked, too.
const SILENT_NODES: u32 = 3;

/// The same for a caller with less patience, or none: a node may take that long.
const SILENCE_MIN: Duration = Duration::from_secs(1);

/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The errors that pass by themselves, by their first word.
const PASSING: [&str; 4] = ["UNKNOWN", "TRYAGAIN", "CLUSTERDOWN", "LOADING"];

/// A request, in words.
pub(super) type Request = Vec<Vec<u8>>;

/// Asks the nodes of a cluster, one at a time.
pub(super) struct Asker<'a> {
    cluster: &'a Cluster,
    link: Option<Link>,
    /// Which node is asked next, counted round and round.
    next: usize,
    /// For how long nothing may come of it.
    patience: Duration,
    /// When something last came of it.
    since: Instant,
    pause: Duration,
}

impl Asker<'_> {
    /// Asks these nodes, as long as something comes of it within `patience`.
    pub(super) fn new(cluster: &Cluster, patience: Duration) -> Asker<'_> {
        let (since, pause) = (Instant::now(), PAUSE_MIN);
        Asker { cluster, link: None, next: 0, patience, since, pause }
    }

    /// Asks for one thing until there is an answer. Errors that do not pass are answers.
    ///
    /// # Errors
    /// When no node answers for too long: why not, as it was last seen.
    pub(super) fn ask(&mut self, words: &[&str]) -> Result<Value, String> {
        let request: Request = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        loop {
            let answers = self.ask_once(std::slice::from_ref(&request));
            let why = match answers.map(|answers| answers.into_iter().next()) {
                Ok(Some(Value::Error(error))) if passes(&error) => error,
                Ok(Some(answer)) => {
                    self.advanced();
                    return Ok(answer);
                }
                Ok(None) => "no answer".to_owned(),
                Err(why) => why,
            };
            self.wait(&why)?;
        }
    }

    /// Asks for several things at once, one time. Their answers come in their order.
    ///
    /// # Errors
    /// When the connection was lost before the last answer: any of them may have been carried out.
    pub(super) fn ask_once(&mut self, requests: &[Request]) -> Result<Vec<Value>, String> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => self.connect()?,
        };
        let mut exchange = || {
            for request in requests {
                link.send(request)?;
            }
            requests.iter().map(|_| link.receive()).collect()
        };
        let answers: Result<Vec<Value>, _> = exchange();
        match answers {
            Ok(answers) => {
                // A node that cannot serve says so to everything; another one may.
                if !answers.iter().any(|answer| matches!(answer, Value::Error(_))) {
                    self.link = Some(link);
                }
                Ok(answers)
            }
            Err(error) => Err(format!("{}: {error}", link.address())),
        }
    }

    fn connect(&mut self) -> Result<Link, String> {
        let nodes = &self.cluster.nodes;
        let node = &nodes[self.next % nodes.len().max(1)];
        self.next += 1;
        let mut link = Link::new(node.host.clone(), node.client)
            .with_patience((self.patience / SILENT_NODES).clamp(SILENCE_MIN, SILENCE));
        link.connect().map_err(|error| error.to_string())?;
        Ok(link)
    }

    /// Something came of what was asked.
    pub(super) fn advanced(&mut self) {
        (self.since, self.pause) = (Instant::now(), PAUSE_MIN);
    }

    /// Waits a little before something is asked again.
    ///
    /// # Errors
    /// When nothing came of it for too long.
    pub(super) fn wait(&mut self, why: &str) -> Result<(), String> {
        let waited = self.since.elapsed();
        if waited >= self.patience {
            return Err(format!("{why} (after {} s of trying)", waited.as_secs()));
        }
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}

/// Whether an error passes by itself.
pub(super) fn passes(error: &str) -> bool {
    PASSING.contains(&error.split(' ').next().unwrap_or_default())
}
