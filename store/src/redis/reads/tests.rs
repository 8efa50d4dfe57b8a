use super::*;
use proptest::prelude::*;
use tokio::io::{DuplexStream, duplex};

const LONG: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
enum Said {
    Value(Vec<u8>),
    Nothing,
    Error(&'static str),
}

impl Said {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Said::Value(value) => [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat(),
            Said::Nothing => b"$-1\r\n".to_vec(),
            Said::Error(text) => format!("-{text}\r\n").into_bytes(),
        }
    }

    fn is(&self, answer: &Answer) -> bool {
        match (self, answer) {
            (Said::Value(value), Ok(Some(got))) => got == value,
            (Said::Nothing, Ok(None)) => true,
            (Said::Error(text), Err(Missed::Redis(error))) => text.starts_with(error.code().expect("a code")),
            _ => false,
        }
    }
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(Said::Value),
        Just(Said::Nothing),
        prop_oneof![Just("LOADING Redis is loading the dataset in memory"), Just("WRONGTYPE Operation against a key"), Just("MOVED 7 a:1")].prop_map(Said::Error),
    ]
}

proptest! {
    /// However the answers arrive, each is cut off whole, and nothing of the next.
    #[test]
    fn answers_are_cut_where_they_end(all in proptest::collection::vec(said(), 0..8), pieces in proptest::collection::vec(1..200usize, 1..40)) {
        let bytes: Vec<u8> = all.iter().flat_map(Said::bytes).collect();
        let (mut received, mut got, mut at) = (BytesMut::new(), vec![], 0);
        for piece in pieces.iter().cycle() {
            let end = (at + piece).min(bytes.len());
            received.extend_from_slice(&bytes[at..end]);
            at = end;
            while let Some(answer) = cut(&mut received).expect("well formed") {
                got.push(answer);
            }
            if at == bytes.len() {
                break;
            }
        }
        prop_assert!(received.is_empty());
        prop_assert_eq!(got.len(), all.len());
        prop_assert!(all.iter().zip(&got).all(|(said, got)| said.is(got)), "{:?}", got);
    }

    /// Whatever arrives: no panic, and no more is taken than is there.
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(prop_oneof![Just(b'$'), Just(b'-'), Just(b'\r'), Just(b'\n'), Just(b'1'), any::<u8>()], 0..60)) {
        let mut received = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = cut(&mut received) {}
        prop_assert!(received.len() <= bytes.len());
    }
}

#[test]
fn other_forms_are_refused() {
    for odd in ["+OK\r\n", ":1\r\n", "*1\r\n$1\r\na\r\n", "$\r\n", "$-2\r\n", "$+1\r\na\r\n", "$1\r\nab\r\n", "$1\na\r\n", "$99999999999999999999\r\n", "$600000000\r\n", "_\r\n", "\r\n"] {
        assert!(cut(&mut BytesMut::from(odd)).is_err(), "{odd:?}");
    }
    let long = [b"-ERR ".as_slice(), &vec![b'x'; LINE]].concat();
    assert!(cut(&mut BytesMut::from(&long[..])).is_err());
}

/// What arrives at the other end.
async fn heard(server: &mut DuplexStream, count: usize) -> Vec<String> {
    let mut keys = vec![];
    while keys.len() < count {
        let mut line = async || {
            let mut line = vec![];
            while !line.ends_with(b"\r\n") {
                line.push(server.read_u8().await.expect("a byte"));
            }
            String::from_utf8(line).expect("text").trim_end().to_owned()
        };
        assert_eq!([line().await, line().await, line().await], ["*2", "$3", "GET"]);
        let length = line().await;
        let key = line().await;
        assert_eq!(length, format!("${}", key.len()));
        keys.push(key);
    }
    keys
}

async fn asked(reads: &Reads, key: &'static str) -> tokio::task::JoinHandle<Answer> {
    let reads = reads.clone();
    let call = tokio::spawn(async move { reads.get(key).await });
    tokio::task::yield_now().await;
    call
}

#[tokio::test]
async fn calls_get_their_answers_in_order() {
    let (client, mut server) = duplex(100);
    let reads = Reads::over(client, LONG);
    let calls = [asked(&reads, "a").await, asked(&reads, "long-key").await, asked(&reads, "").await];
    // The caller of the second leaves; its answer is nobody else's.
    calls[1].abort();
    assert_eq!(heard(&mut server, 3).await, ["a", "long-key", ""]);
    server.write_all(b"$1\r\n1\r\n$1\r\n2\r\n$-1\r\n").await.expect("written");
    let [first, second, third] = calls;
    assert_eq!(first.await.expect("no panic").expect("answered").as_deref(), Some(&b"1"[..]));
    assert!(second.await.is_err_and(|error| error.is_cancelled()));
    assert_eq!(third.await.expect("no panic").expect("answered"), None);
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_not_taken_for_the_next_one() {
    let (client, mut server) = duplex(10_000);
    let reads = Reads::over(client, Duration::from_millis(50));
    let first = asked(&reads, "a").await;
    tokio::time::advance(Duration::from_millis(30)).await;
    let second = asked(&reads, "b").await;
    assert!(matches!(first.await.expect("no panic"), Err(Missed::Late)));
    heard(&mut server, 2).await;
    server.write_all(b"$1\r\na\r\n$1\r\nb\r\n").await.expect("written");
    assert_eq!(second.await.expect("no panic").expect("in time").as_deref(), Some(&b"b"[..]));
    // All calm: the clock stands, and goes again with the next call.
    tokio::time::advance(LONG).await;
    let third = asked(&reads, "c").await;
    assert!(matches!(third.await.expect("no panic"), Err(Missed::Late)));
}

#[tokio::test]
async fn what_waits_when_the_connection_ends_fails() {
    for nonsense in [None, Some(&b"+OK\r\n"[..]), Some(b"$1\r\nabc")] {
        let (client, mut server) = duplex(10_000);
        let reads = Reads::over(client, LONG);
        let calls = [asked(&reads, "a").await, asked(&reads, "b").await];
        heard(&mut server, 2).await;
        match nonsense {
            Some(bytes) => server.write_all(bytes).await.expect("written"),
            None => drop(server),
        }
        for call in calls {
            let missed = call.await.expect("no panic");
            assert!(matches!(&missed, Err(Missed::Redis(error)) if error.is_io_error()), "{missed:?}");
        }
        assert!(matches!(reads.get("c").await, Err(Missed::Redis(_))));
    }
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_ends_the_connection() {
    let (client, mut server) = duplex(10_000);
    let reads = Reads::over(client, LONG);
    server.write_all(b"$1\r\na\r\n").await.expect("written");
    tokio::task::yield_now().await;
    let missed = reads.get("a").await;
    assert!(matches!(missed, Err(Missed::Redis(_))), "{missed:?}");
}

#[tokio::test]
async fn the_connection_closes_when_nobody_holds_it() {
    let (client, mut server) = duplex(10_000);
    drop(Reads::over(client, LONG));
    assert_eq!(server.read(&mut [0; 8]).await.expect("closed"), 0);
}
