//! More work than a service can do: only so much is let through, the unimportant is refused first, and the other services do not notice.

use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use weir_tests::{Answer, Config, Shop, Weir, eventually};

/// A service with a number of workers: each request needs one for some time.
struct Workers {
    address: SocketAddr,
    free: Arc<Semaphore>,
    inside: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Workers {
    async fn start(workers: usize, work: Duration) -> Workers {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let made = Workers {
            address: listener.local_addr().expect("an address"),
            free: Arc::new(Semaphore::new(workers)),
            inside: Arc::default(),
            most: Arc::default(),
        };
        let (free, inside, most) = (made.free.clone(), made.inside.clone(), made.most.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, free.clone(), inside.clone(), most.clone(), work));
            }
        });
        made
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn serve(mut stream: TcpStream, free: Arc<Semaphore>, inside: Arc<AtomicUsize>, most: Arc<AtomicUsize>, work: Duration) {
    let mut seen = Vec::new();
    let mut piece = [0; 4096];
    loop {
        while !seen.ends_with(b"\r\n\r\n") {
            match stream.read(&mut piece).await {
                Ok(count) if count > 0 => seen.extend_from_slice(&piece[..count]),
                _ => return,
            }
        }
        seen.clear();
        most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
        if let Ok(worker) = free.acquire().await {
            tokio::time::sleep(work).await;
            drop(worker);
        }
        inside.fetch_sub(1, SeqCst);
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
            return;
        }
    }
}

/// The shop with one more service, limited.
fn limited(shop: &Shop, url: &str, concurrency: Value, plugins: Value) -> Config {
    let config = shop.config().service("limited", url, "/limited", plugins);
    let last = config.0["gateway"]["services"].as_array().map_or(0, Vec::len) - 1;
    config.set(&format!("/gateway/services/{last}/concurrency"), concurrency)
}

fn ask(weir: &Weir, class: &'static str) -> tokio::task::JoinHandle<Answer> {
    let ask = weir.gateway().get("/limited").header("x-class", class);
    tokio::spawn(async move { ask.send().await })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unimportant_is_refused_first() {
    let shop = Shop::start().await;
    let workers = Workers::start(0, Duration::ZERO).await;
    let rule = |priority: &str, value: &str| json!({ "priority": priority, "headers": { "X-Class": [value] } });
    let plugins = json!([{ "name": "load-shedding", "config": { "rules": [rule("high", "paid"), rule("critical", "health")], "default": "low" } }]);
    let concurrency = json!({ "limit": 2, "queue": 2, "queue_timeout": "80s", "reserve": 0 });
    let weir = Weir::start(&limited(&shop, &workers.url(), concurrency, plugins)).await;
    let stands = async |under_way: f64, waiting: f64| {
        eventually("the queue", async || {
            let now = (weir.metric("weir_concurrency_under_way", &["service:limited"]).await, weir.metric("weir_concurrency_waiting", &["service:limited"]).await);
            (now == (under_way, waiting)).then_some(())
        })
        .await;
    };
    let begun = [ask(&weir, "guest"), ask(&weir, "guest")];
    stands(2.0, 0.0).await;
    let first = ask(&weir, "guest");
    stands(2.0, 1.0).await;
    let second = ask(&weir, "guest");
    stands(2.0, 2.0).await;
    let full = ask(&weir, "guest").await.expect("an answer").expect(503);
    assert_eq!((full.must("retry-after"), full.must("x-weir-reason")), ("1", "overloaded"));
    assert_eq!(full.json()["message"], "The service is overloaded, try again later");

    let paid = ask(&weir, "paid");
    let displaced = second.await.expect("an answer").expect(503);
    assert_eq!((displaced.must("retry-after"), displaced.must("x-weir-reason")), ("1", "displaced"));
    let health = ask(&weir, "health");
    assert_eq!(first.await.expect("an answer").expect(503).must("x-weir-reason"), "displaced");
    assert_eq!(ask(&weir, "paid").await.expect("an answer").status, 503, "the queue is full of their like");
    assert_eq!(workers.inside.load(SeqCst), 2);

    workers.free.add_permits(2);
    for served in begun.into_iter().chain([paid, health]) {
        served.await.expect("an answer").expect(200);
    }
    assert_eq!(workers.most.load(SeqCst), 2, "never more than the limit");
    stands(0.0, 0.0).await;
    let shed = async |priority: &'static str| weir.metric("weir_concurrency_shed_total", &["service:limited", priority]).await;
    assert_eq!((shed("\"low\"").await, shed("\"high\"").await, shed("\"critical\"").await), (3.0, 1.0, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_in_time_and_with_the_client() {
    let shop = Shop::start().await;
    let workers = Workers::start(0, Duration::ZERO).await;
    let concurrency = json!({ "limit": 1, "queue": 1, "queue_timeout": "300ms" });
    let weir = Weir::start(&limited(&shop, &workers.url(), concurrency, json!([]))).await;
    let waiting = async || weir.metric("weir_concurrency_waiting", &["service:limited"]).await;
    let _first = ask(&weir, "any");
    eventually("the first is under way", async || (workers.inside.load(SeqCst) == 1).then_some(())).await;
    let late = ask(&weir, "any").await.expect("an answer").expect(503);
    assert_eq!((late.must("retry-after"), late.must("x-weir-reason")), ("1", "queue-timeout"));
    assert_eq!(waiting().await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adaptive_limit_finds_what_a_service_can_do() {
    const CALLERS: usize = 60;
    let shop = Shop::start().await;
    let workers = Workers::start(4, Duration::from_millis(20)).await;
    let concurrency = json!({ "limit": 100, "queue": 0, "adaptive": { "min": 2, "max": 200, "window": "100ms", "probe": "60s" } });
    let weir = Weir::start(&limited(&shop, &workers.url(), concurrency, json!([]))).await;
    let (stop, served, shed, micros) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (door, stop, served, shed, micros) = (weir.gateway(), stop.clone(), served.clone(), shed.clone(), micros.clone());
            tokio::spawn(async move {
                let mut connection = door.connect().await;
                while !stop.load(SeqCst) {
                    let begun = Instant::now();
                    let answer = door.get("/limited").on(&mut connection).await.expect("an answer");
                    if answer.status == 200 {
                        served.fetch_add(1, SeqCst);
                        micros.fetch_add(begun.elapsed().as_micros() as u64, SeqCst);
                    } else {
                        assert_eq!(answer.status, 503);
                        assert!(answer.must("retry-after").parse::<u32>().is_ok_and(|seconds| (1..=30).contains(&seconds)));
                        shed.fetch_add(1, SeqCst);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            })
        })
        .collect();
    let limit = async || weir.metric("weir_concurrency_limit", &["service:limited"]).await;
    // Four workers: far below the sixty that ask, and never below what they can do for long.
    let found = eventually("the limit is near what the workers can do", async || {
        let now = limit().await;
        (served.load(SeqCst) > 200 && (3.0..=30.0).contains(&now)).then_some(now)
    })
    .await;
    for count in [&served, &shed, &micros] {
        count.store(0, SeqCst);
    }
    let begun = Instant::now();
    eventually("some more", async || (served.load(SeqCst) > 200).then_some(())).await;
    let (count, refused) = (served.load(SeqCst), shed.load(SeqCst));
    println!(
        "adaptive: {CALLERS} callers, 4 workers of 20 ms: limit {found}, {:.0} served/s (the workers' most: 200), {refused} refused for {count} served, mean latency {:.0} ms (unlimited: {} ms)",
        count as f64 / begun.elapsed().as_secs_f64(),
        micros.load(SeqCst) as f64 / count as f64 / 1000.0,
        CALLERS / 4 * 20,
    );
    assert!(limit().await < 45.0);
    stop.store(true, SeqCst);
    for caller in callers {
        caller.await.expect("no panic");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_slow_service_does_not_take_the_others_along() {
    let shop = Shop::start().await;
    let workers = Workers::start(0, Duration::ZERO).await;
    let concurrency = json!({ "limit": 8, "queue": 8, "queue_timeout": "100ms" });
    let config = limited(&shop, &workers.url(), concurrency, json!([])).service("well", &shop.stubs.deals.url(), "/echo", json!([]));
    let weir = Weir::start(&config).await;
    // Nothing of this is ever answered by the service.
    let stuck: Vec<_> = (0..200).map(|_| ask(&weir, "any")).collect();
    eventually("the slow service has all it may get", async || (workers.inside.load(SeqCst) == 8).then_some(())).await;
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    for _ in 0..200 {
        let asked = Instant::now();
        weir.gateway().get("/echo").send().await.expect(200);
        longest = longest.max(asked.elapsed());
    }
    println!("cascade: 200 requests to a dead service, 8 let through; 200 to another meanwhile: all 200, mean {:.1} ms, longest {:.1} ms", begun.elapsed().as_secs_f64() * 5.0, longest.as_secs_f64() * 1000.0);
    let refused = eventually("all others are refused", async || {
        let done = stuck.iter().filter(|task| task.is_finished()).count();
        (done == 192).then_some(done)
    })
    .await;
    assert_eq!((refused, workers.most.load(SeqCst)), (192, 8));
    for task in stuck.into_iter().filter(|task| task.is_finished()) {
        assert_eq!(task.await.expect("an answer").status, 503);
    }
}
