//! A closed loop of PUTs on an etcd server, with keys and values of the same sizes as
//! `quorate --role bench` sends, and the same summary.
//!
//!     etcd-load ENDPOINT CLIENTS CHANNELS KEYS KEY_SIZE VALUE_SIZE MILLISECONDS SEED
//!
//! Clients share channels, as those of etcd's own `benchmark put --conns --clients` do: a channel is
//! one HTTP/2 connection. The two messages are written out here instead of being generated, so no
//! protoc is needed.

use hdrhistogram::Histogram;
use std::cell::{Cell, RefCell};
use std::error::Error;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};

/// `etcdserverpb.PutRequest`, as far as it is needed.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `etcdserverpb.PutResponse`: that it came is all we want to know.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

struct Load {
    keys: u64,
    key_size: usize,
    value: Vec<u8>,
    end: Instant,
    dice: Cell<u64>,
    latencies: RefCell<Histogram<u64>>,
    last_reply: Cell<Instant>,
}

impl Load {
    /// xorshift64*, as the other generator's.
    fn draw(&self) -> u64 {
        let mut dice = self.dice.get();
        dice ^= dice >> 12;
        dice ^= dice << 25;
        dice ^= dice >> 27;
        self.dice.set(dice);
        let drawn = dice.wrapping_mul(0x2545_F491_4F6C_DD1D);
        ((u128::from(drawn) * u128::from(self.keys)) >> 64) as u64
    }

    async fn client(&self, channel: Channel) -> Result<(), Box<dyn Error>> {
        let mut grpc = Grpc::new(channel);
        loop {
            let sent = Instant::now();
            if sent >= self.end {
                return Ok(());
            }
            let digits = format!("{:012}", self.draw());
            let prefix = b"key:".iter().cycle().take(self.key_size - digits.len());
            let key = prefix.copied().chain(digits.into_bytes()).collect();
            let request = tonic::Request::new(PutRequest { key, value: self.value.clone() });
            grpc.ready().await?;
            let codec = tonic_prost::ProstCodec::<PutRequest, PutResponse>::default();
            let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
            grpc.unary(request, path, codec).await?;
            let now = Instant::now();
            self.latencies.borrow_mut().saturating_record((now - sent).as_micros() as u64);
            self.last_reply.set(now);
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, numbers @ ..] = words.as_slice() else {
        return Err("which endpoint?".into());
    };
    let numbers = numbers.iter().map(|word| word.parse()).collect::<Result<Vec<u64>, _>>()?;
    let &[clients, channels, keys, key_size, value_size, millis, seed] = numbers.as_slice() else {
        return Err("CLIENTS CHANNELS KEYS KEY_SIZE VALUE_SIZE MILLISECONDS SEED".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let mut connected = Vec::new();
        for _ in 0..channels {
            connected.push(Endpoint::from_shared(endpoint.clone())?.tcp_nodelay(true).connect().await?);
        }
        let began = Instant::now();
        let load = Rc::new(Load {
            keys,
            key_size: (key_size as usize).max(16),
            value: vec![b'v'; value_size as usize],
            end: began + Duration::from_millis(millis),
            dice: Cell::new((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            latencies: RefCell::new(Histogram::new_with_bounds(1, 60_000_000, 3)?),
            last_reply: Cell::new(began),
        });
        let mut running = Vec::new();
        for client in 0..clients {
            let (load, channel) = (load.clone(), connected[(client % channels) as usize].clone());
            running.push(tokio::task::spawn_local(async move {
                load.client(channel).await.map_err(|error| error.to_string())
            }));
        }
        for client in running {
            client.await??;
        }
        let latencies = load.latencies.borrow();
        let (ops, seconds) = (latencies.len(), (load.last_reply.get() - began).as_secs_f64());
        println!(
            "{{\"seconds\":{seconds},\"ops\":{ops},\"ops_per_second\":{},\"p50_us\":{},\
             \"p99_us\":{},\"errors\":0}}",
            ops as f64 / seconds,
            latencies.value_at_quantile(0.5),
            latencies.value_at_quantile(0.99)
        );
        Ok(())
    })
}
