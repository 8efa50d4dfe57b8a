//! The tables in `tables/`, row by row.

mod support;

use http::{HeaderMap, Method, StatusCode};
use std::time::Duration;
use support::*;
use weir_cache::{policy::{Times, judge}, *};

/// The rows of a table: section, line number, columns.
fn rows(text: &'static str) -> Vec<(String, usize, Vec<&'static str>)> {
    let (mut section, mut rows) = (String::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title.to_owned();
        } else if !line.is_empty() && !line.starts_with('#') {
            rows.push((section.clone(), index + 1, line.split('|').map(str::trim).collect()));
        }
    }
    assert!(rows.len() > 10);
    rows
}

fn fields(text: &str) -> HeaderMap {
    let pairs: Vec<_> = text.split(" + ").filter(|part| !part.trim().is_empty()).map(|part| part.trim().split_once(": ").expect("name: value")).collect();
    headers(&pairs)
}

/// `200 name: value + …`
fn response(text: &str) -> (u16, HeaderMap) {
    let (status, rest) = text.split_once(' ').unwrap_or((text, ""));
    (status.parse().expect("status"), fields(rest))
}

fn rule(name: &str) -> Policy {
    let fixed = |override_control| Freshness::For { ttl: Duration::from_secs(60), override_control };
    let cap = Duration::from_secs(86_400);
    let mut statuses = plain().statuses;
    statuses.extend([206, 299, 307]);
    let plain = Policy { statuses: statuses.clone(), ..plain() };
    let html = Policy { statuses, ..html() };
    match name {
        "plain" => plain,
        "heuristic" => Policy { freshness: Freshness::Origin { heuristic: 0.1, cap, default: None }, ..plain },
        "default" => Policy { freshness: Freshness::Origin { heuristic: 0.0, cap, default: Some(Duration::from_secs(300)) }, ..plain },
        "plain-60s" => Policy { freshness: fixed(false), ..plain },
        "plain-60s!" => Policy { freshness: fixed(true), ..plain },
        "html" => html,
        "html-60s" => Policy { freshness: fixed(false), ..html },
        "html-60s!" => Policy { freshness: fixed(true), ..html },
        other => panic!("no rule {other}"),
    }
}

#[test]
fn storing() {
    for (section, line, columns) in rows(include_str!("tables/storing.txt")) {
        let [name, request, answer, expected] = columns[..] else { panic!("line {line}: four columns") };
        let place = format!("storing.txt:{line} ({section})");
        let (status, head) = response(answer);
        let request = CacheRequest { headers: fields(request), ..get(&[]) };
        let times = Times { request_ms: T0 * 1000, response_ms: T0 * 1000 };
        let judged = judge(&rule(name), &request, StatusCode::from_u16(status).expect("status"), &head, times);
        let mut words = expected.split_whitespace();
        match (words.next().expect("expectation"), judged) {
            ("refused", Err(reason)) => assert_eq!(reason, words.next().expect("reason"), "{place}"),
            ("fresh", Ok(terms)) => {
                assert_eq!(terms.lifetime, Duration::from_secs(words.next().expect("seconds").parse().expect("seconds")), "{place}");
                while let Some(word) = words.next() {
                    let mut next = || words.next().expect("value");
                    let mut seconds = || Duration::from_secs(next().parse().expect("seconds"));
                    match word {
                        "age" => assert_eq!(Duration::from_millis(terms.initial_age_ms), seconds(), "{place}"),
                        "swr" => assert_eq!(terms.stale_while_revalidate, seconds(), "{place}"),
                        "sie" => assert_eq!(terms.stale_if_error, seconds(), "{place}"),
                        "strip" => assert_eq!(terms.strip.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(","), next(), "{place}"),
                        "vary" => assert_eq!(terms.vary.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(","), next(), "{place}"),
                        "strict" => assert!(terms.no_max_stale, "{place}"),
                        other => panic!("{place}: {other}?"),
                    }
                }
            }
            (_, judged) => panic!("{place}: expected {expected}, got {judged:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn reusing() {
    for (section, line, columns) in rows(include_str!("tables/reusing.txt")) {
        let [answer, later, request, expected] = columns[..] else { panic!("line {line}: four columns") };
        let place = format!("reusing.txt:{line} ({section})");
        let (machine, plan) = (Machine::new(), plan(plain()));
        let reply = Reply { headers: fields(answer), ..Reply::new(200, &[], "body") };
        let origin = Origin::new(move |_, conditions| if conditions.is_empty() { reply.clone() } else { Reply { status: 304, body: vec![], ..reply.clone() } });
        let first = machine.ask(&plan, &get(&[]), &origin).await;
        assert_eq!((first.text(), first.report.stored), ("body", true), "{place}");
        machine.advance(later.parse().expect("seconds"));
        let got = machine.ask(&plan, &CacheRequest { headers: fields(request), ..get(&[]) }, &origin).await;
        let asked = origin.asked.lock().clone();
        let mut words = expected.split_whitespace();
        let kind = match (got.kind, got.verdict(), asked.get(1)) {
            ("stored", Verdict::Hit, None) => "hit",
            ("stored", Verdict::Stale, _) => "stale",
            ("filling", Verdict::Miss, Some(conditions)) if conditions.is_empty() => "fetch",
            ("stored", Verdict::Miss, Some(conditions)) if !conditions.is_empty() => "validate",
            ("pass", ..) => "pass",
            ("failed", ..) if got.status == 504 => "504",
            other => panic!("{place}: {other:?}"),
        };
        assert_eq!(Some(kind), words.next(), "{place}: {got:?}");
        if words.next() == Some("age") {
            assert_eq!(got.field("age"), words.next(), "{place}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn answering() {
    for (section, line, columns) in rows(include_str!("tables/answering.txt")) {
        let [answer, request, expected] = columns[..] else { panic!("line {line}: three columns") };
        let place = format!("answering.txt:{line} ({section})");
        let (machine, plan) = (Machine::new(), plan(plain()));
        let (status, head) = response(answer);
        let reply = Reply { headers: head, ..Reply::new(status, &[], "0123456789") };
        let reply = reply.with("cache-control", "max-age=600").with("content-type", "text/plain");
        let origin = Origin::always(reply);
        machine.ask(&plan, &get(&[]), &origin).await;
        machine.advance(10);
        let (method, rest) = request.split_once(' ').unwrap_or((request, ""));
        let request = CacheRequest { method: method.parse::<Method>().expect("method"), headers: fields(rest), ..get(&[]) };
        let got = machine.ask(&plan, &request, &origin).await;
        assert_eq!((got.kind, got.verdict(), origin.hits()), ("stored", Verdict::Hit, 1), "{place}");
        let (status, rest) = expected.split_once(' ').expect("status");
        let (body, rest) = rest.strip_prefix('"').and_then(|rest| rest.split_once('"')).expect("body in quotes");
        assert_eq!((got.status.to_string().as_str(), got.text()), (status, body), "{place}");
        for field in rest.split(" + ").map(str::trim).filter(|field| !field.is_empty()) {
            match field.strip_prefix('!') {
                Some(name) => assert_eq!(got.field(name), None, "{place}: {name}"),
                None => {
                    let (name, value) = field.split_once(": ").expect("name: value");
                    assert_eq!(got.field(name), Some(value), "{place}: {name}");
                }
            }
        }
        assert!(got.headers.get_all("age").iter().count() == 1, "{place}: one Age");
    }
}

#[test]
fn rfc9111_4_2_3_the_time_that_the_answer_took_counts() {
    let age = |fields: &[(&str, &str)]| {
        let head = headers(&[fields, &[("cache-control", "max-age=60")]].concat());
        let times = Times { request_ms: (T0 - 7) * 1000, response_ms: T0 * 1000 };
        judge(&plain(), &get(&[]), StatusCode::OK, &head, times).map(|terms| terms.initial_age_ms / 1000)
    };
    assert_eq!(age(&[]), Ok(7), "it may have been made when it was asked for");
    assert_eq!(age(&[("age", "20")]), Ok(27));
    assert_eq!(age(&[("date", "Sun, 06 Nov 1994 08:49:33 GMT")]), Ok(7), "made after 3 s by the origin's clock");
    assert_eq!(age(&[("date", "Sun, 06 Nov 1994 08:49:17 GMT")]), Ok(20));
    assert_eq!(age(&[("age", "53")]), Err("expired"));
}
