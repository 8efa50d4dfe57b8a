//! The members service: `/api/members[/id]`, JSON, all in memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use http::{HeaderName, Method, StatusCode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::call::{Call, Reply, bare, created, json_reply, not_found, problem, set, wrong_method};
use crate::catalogue::{page, under};
use crate::clock;

#[derive(Debug, Clone, Serialize)]
struct Member {
    id: u64,
    name: String,
    email: String,
    tier: String,
    updated_at: String,
}

/// What POST and PUT want whole, and PATCH in part.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    name: Option<String>,
    email: Option<String>,
    tier: Option<String>,
}

pub(crate) struct Members {
    by_id: Mutex<BTreeMap<u64, Member>>,
    next: AtomicU64,
}

impl Members {
    pub fn new() -> Members {
        let seeded = [
            ("Alice Liddell", "alice@example.com", "gold"),
            ("Bob Bauer", "bob@example.com", "silver"),
            ("Carol Reed", "carol@example.com", "basic"),
        ];
        let by_id: BTreeMap<u64, Member> = (1u64..)
            .zip(seeded)
            .map(|(id, (name, email, tier))| {
                (
                    id,
                    Member {
                        id,
                        name: name.into(),
                        email: email.into(),
                        tier: tier.into(),
                        updated_at: clock::iso(SystemTime::now()),
                    },
                )
            })
            .collect();
        let next = AtomicU64::new(by_id.len() as u64 + 1);
        Members {
            by_id: Mutex::new(by_id),
            next,
        }
    }

    pub async fn answer(&self, call: Call) -> Reply {
        let saw = if call.headers().contains_key("authorization") {
            "yes"
        } else {
            "no"
        };
        let consumer = call
            .header("x-consumer-username")
            .or_else(|| call.header("x-consumer-id"))
            .map(str::to_owned);
        let mut reply = self.route(call).await;
        set(
            &mut reply,
            HeaderName::from_static("x-stub-saw-authorization"),
            saw,
        );
        if let Some(consumer) = consumer {
            set(
                &mut reply,
                HeaderName::from_static("x-stub-saw-consumer"),
                &consumer,
            );
        }
        reply
    }

    async fn route(&self, call: Call) -> Reply {
        let Some(rest) = under(call.path(), "/api/members") else {
            return not_found("such path");
        };
        let method = call.method().clone();
        if rest.is_empty() {
            return match method {
                Method::GET | Method::HEAD => json_reply(
                    StatusCode::OK,
                    &page(&call, self.by_id.lock().values().cloned().collect(), 20),
                ),
                Method::POST => self.create(call).await,
                _ => wrong_method("GET, HEAD, POST"),
            };
        }
        let Ok(id) = rest.parse::<u64>() else {
            return not_found("such member");
        };
        match method {
            Method::GET | Method::HEAD => match self.by_id.lock().get(&id) {
                Some(member) => json_reply(StatusCode::OK, member),
                None => not_found("such member"),
            },
            Method::PUT | Method::PATCH => self.update(id, call).await,
            Method::DELETE => match self.by_id.lock().remove(&id) {
                Some(_) => bare(StatusCode::NO_CONTENT),
                None => not_found("such member"),
            },
            _ => wrong_method("GET, HEAD, PUT, PATCH, DELETE"),
        }
    }

    async fn create(&self, call: Call) -> Reply {
        let change = match call.json::<Change>().await {
            Ok(change) => change,
            Err(reply) => return reply,
        };
        let (name, email) = match whole(&change) {
            Ok(both) => both,
            Err(reply) => return reply,
        };
        let id = self.next.fetch_add(1, Ordering::SeqCst);
        let member = Member {
            id,
            name,
            email,
            tier: change.tier.unwrap_or_else(|| "basic".into()),
            updated_at: clock::iso(SystemTime::now()),
        };
        self.by_id.lock().insert(id, member.clone());
        created(&format!("/api/members/{id}"), &member)
    }

    async fn update(&self, id: u64, call: Call) -> Reply {
        let replace = call.method() == Method::PUT;
        let change = match call.json::<Change>().await {
            Ok(change) => change,
            Err(reply) => return reply,
        };
        if replace && let Err(reply) = whole(&change) {
            return reply;
        }
        if let Err(reply) = valid(&change) {
            return reply;
        }
        let mut all = self.by_id.lock();
        let Some(member) = all.get_mut(&id) else {
            return not_found("such member");
        };
        if let Some(name) = change.name {
            member.name = name;
        }
        if let Some(email) = change.email {
            member.email = email;
        }
        match change.tier {
            Some(tier) => member.tier = tier,
            None if replace => member.tier = "basic".into(),
            None => {}
        }
        member.updated_at = clock::iso(SystemTime::now());
        json_reply(StatusCode::OK, member)
    }
}

fn whole(change: &Change) -> Result<(String, String), Reply> {
    valid(change)?;
    match (&change.name, &change.email) {
        (Some(name), Some(email)) => Ok((name.clone(), email.clone())),
        _ => Err(problem(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_member",
            "name and email are needed",
        )),
    }
}

fn valid(change: &Change) -> Result<(), Reply> {
    if change.name.as_ref().is_some_and(|n| n.trim().is_empty()) {
        return Err(problem(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_member",
            "name is empty",
        ));
    }
    if change.email.as_ref().is_some_and(|e| !e.contains('@')) {
        return Err(problem(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_member",
            "email has no @",
        ));
    }
    Ok(())
}
