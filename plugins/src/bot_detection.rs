//! `bot-detection`: crawlers and scripts that say what they are stay out.

use crate::{Configured, Live};
use http::{StatusCode, header, request};
use regex::{RegexSet, RegexSetBuilder};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::{Arc, LazyLock};
use weir_config::{Diagnostic, Node};
use weir_gateway::{BuildEnv, Environment, Flow, Phases, Plugin, Reply, RequestContext, Sight};

const BY: &str = "bot-detection";
/// Largest compiled form of a list of expressions.
const MOST_COMPILED: usize = 16 << 20;

/// Keeps out clients whose `User-Agent` says that they are crawlers, monitors or scripts: 403. An expression in `allow` lets them pass, one in `deny` keeps out others,
/// and well-known ones (search engines, link previews, HTTP libraries, anything called spider or crawler) stay out by themselves. It does not
/// detect those that pretend to be browsers. Requests without `User-Agent` pass; with several the answer is 400. Fields and messages are Kong's; the list of well-known bots is Weir's own.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Regular expressions; a `User-Agent` in which one of them is found passes.
    #[serde(alias = "whitelist")]
    #[schemars(extend("x-aliases" = ["whitelist"]))]
    pub allow: Vec<String>,
    /// Regular expressions; a `User-Agent` in which one of them is found stays out, unless `allow` knows it.
    #[serde(alias = "blacklist")]
    #[schemars(extend("x-aliases" = ["blacklist"]))]
    pub deny: Vec<String>,
}

/// Well-known bots. One that calls itself a bot and gives a version is known by that.
const KNOWN: &[&str] = &[
    // What crawlers call themselves.
    r"(?i)spider|crawl|scrap(e|y)",
    r"[Bb]ot[/ -]v?[0-9]",
    r"([Aa]rchiver|[Ii]ndexer|[Ss]earch[Ee]ngine)[/ ]v?[0-9]",
    // Search engines, also without a version.
    r"Googlebot|AdsBot-Google|Mediapartners-Google|AppEngine-Google|Google.*/\+/web/snippet|Google-HTTP-Java-Client",
    r"bingbot|BingPreview|msnbot|msrbot|Slurp|DuckDuckBot|Baidu[Ss]?pider|Yandex[A-Za-z]+|Sogou|Qwantify|SeznamBot|Yeti/|Daumoa|coccocbot",
    r"MJ12bot|AhrefsBot|SemrushBot|DotBot|PetalBot|Exabot|BLEXBot|Applebot|gigabot|Mail\.RU_Bot|ia_archiver|archive\.org_bot|heritrix|Nutch",
    // Previews of links.
    r"facebookexternalhit|Twitterbot|LinkedInBot|Slackbot|Slack-ImgProxy|Discordbot|TelegramBot|WhatsApp|Pinterestbot|SkypeUriPreview",
    // Readers of feeds and other services.
    r"Bloglovin|Feedbin|Netvibes|SimplePie|Tiny Tiny RSS|WordPress|HTTrack|Xenu|larbin|WebZIP|PhantomJS",
    // Monitors and scanners.
    r"Pingdom|UptimeRobot|StatusCake|Catchpoint|YottaaMonitor|HttpMonitor|TLSProber| PTST/[0-9]|masscan|WhatWeb|zgrab|Nikto|sqlmap",
    // Libraries and command-line clients of services.
    r"Apache-HttpClient|Go-http-client|Python-urllib|okhttp|axios|reqwest|aihttp|scalaj-http|http%20client|WinHTTP|JNLP|unirest-(java|python|ruby|nodejs|php|net)",
    r"\b(Boto3?|JetS3t|s3fs|aws-cli|aws-sdk-[a-z0-9-]+)/[0-9]",
];

static BOTS: LazyLock<Option<RegexSet>> = LazyLock::new(|| RegexSet::new(KNOWN).ok());

impl Configured for Config {
    const NAME: &'static str = BY;
    const PRIORITY: i32 = 2500;
    const EXAMPLE: &'static str = "allow: ['Googlebot/', 'our-monitor/[0-9]+']\ndeny: ['^curl/']\n";
    type Ready = Rules;

    fn ready(self, at: &Node) -> Result<Rules, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let mut list = |key: &str, old: &str, expressions: &[String]| {
            let node = at.get(key).or_else(|| at.get(old));
            for (place, text) in expressions.iter().enumerate() {
                if let Err(error) = regex::Regex::new(text) {
                    let span = node.and_then(|n| n.items().get(place)).map_or(at.span(), Node::span);
                    let why = error.to_string();
                    let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                    errors.push(Diagnostic::error("plugin-config", span, format!("this is not a regular expression: {why}")));
                }
            }
            match RegexSetBuilder::new(expressions).size_limit(MOST_COMPILED).build() {
                Ok(set) => set,
                Err(_) => {
                    if errors.is_empty() {
                        let span = node.map_or(at.span(), Node::span);
                        errors.push(Diagnostic::error("plugin-config", span, "these expressions are too large together"));
                    }
                    RegexSet::empty()
                }
            }
        };
        let (allow, deny) = (list("allow", "whitelist", &self.allow), list("deny", "blacklist", &self.deny));
        if errors.is_empty() { Ok(Rules { allow, deny }) } else { Err(errors) }
    }

    fn build(ready: Rules, env: &BuildEnv<'_>, _: &Live) -> Arc<dyn Plugin> {
        Arc::new(BotDetection { rules: ready, environment: env.environment.clone() })
    }
}

/// The configuration, compiled.
pub struct Rules {
    allow: RegexSet,
    deny: RegexSet,
}

impl Rules {
    fn refuses(&self, agent: &str) -> bool {
        let known = || BOTS.as_ref().is_some_and(|bots| bots.is_match(agent));
        !self.allow.is_match(agent) && (self.deny.is_match(agent) || known())
    }
}

struct BotDetection {
    rules: Rules,
    environment: Arc<Environment>,
}

impl Plugin for BotDetection {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn sees_of_request(&self) -> Sight {
        Sight::Only(vec![header::USER_AGENT, header::ACCEPT])
    }

    fn request(&self, cx: &mut RequestContext, req: &mut request::Parts) -> Flow {
        let mut fields = req.headers.get_all(header::USER_AGENT).iter();
        let (status, message) = match (fields.next(), fields.next()) {
            (None, _) => return Flow::Continue,
            (Some(_), Some(_)) => (StatusCode::BAD_REQUEST, "Only one User-Agent header allowed"),
            (Some(agent), None) => match self.rules.refuses(String::from_utf8_lossy(agent.as_bytes()).trim()) {
                true => (StatusCode::FORBIDDEN, "Forbidden"),
                false => return Flow::Continue,
            },
        };
        self.environment.metrics.plugin(BY, "refused");
        Flow::Reply(Reply::error(BY, cx, req.headers.get(header::ACCEPT), status, message))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Rig, errors, get};

    async fn status(config: &str, agent: &str) -> u16 {
        Rig::new(&[("bot-detection", config)]).run(get("/").with("user-agent", agent)).await.status()
    }

    #[tokio::test]
    async fn well_known_bots_stay_out_and_people_pass() {
        for bot in [
            "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
            "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
            "Mozilla/5.0 (compatible; Baiduspider/2.0; +http://www.baidu.com/search/spider.html)",
            "Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)",
            "Mozilla/5.0 (compatible; Yahoo! Slurp; http://help.yahoo.com/help/us/ysearch/slurp)",
            "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
            "Twitterbot/1.0",
            "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)",
            "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)",
            "Pingdom.com_bot_version_1.4_(http://www.pingdom.com/)",
            "Mozilla/5.0 (Windows NT 6.1) Chrome/40.0 Safari/537.36 PTST/182",
            "Some-New-Bot/0.1",
            "a web crawler",
            "Scrapy/2.11 (+https://scrapy.org)",
            "Apache-HttpClient/4.5.13 (Java/11)",
            "Go-http-client/1.1",
            "okhttp/4.9.0",
            "axios/1.6.0",
            "Boto3/1.26",
            "aws-sdk-go/1.44",
            "WhatsApp/2.23",
        ] {
            assert_eq!(status("{}", bot).await, 403, "{bot}");
        }
        for person in [
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
            "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
            "Mozilla/5.0 (Linux; Android 9; CUBOT_NOTE_S) AppleWebKit/537.36 Chrome/120.0 Mobile Safari/537.36",
            "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0",
            "curl/8.5.0",
            "",
        ] {
            assert_eq!(status("{}", person).await, 200, "{person}");
        }
    }

    #[tokio::test]
    async fn allow_comes_before_deny_and_deny_before_the_list() {
        for (config, agent, code) in [
            ("allow: ['Googlebot/[0-9]']", "Googlebot/2.1", 200),
            ("whitelist: ['Googlebot/[0-9]']", "Googlebot/2.1", 200),
            ("deny: ['^curl/']", "curl/8.5.0", 403),
            ("blacklist: ['^curl/']", "curl/8.5.0", 403),
            ("deny: ['^curl/']", "libcurl/8", 200),
            ("{allow: [good], deny: [curl]}", "curl good", 200),
        ] {
            assert_eq!(status(config, agent).await, code, "{config} {agent}");
        }
    }

    #[tokio::test]
    async fn the_answers() {
        let rig = Rig::new(&[("bot-detection", "{}")]);
        let seen = rig.run(get("/").with("user-agent", "Googlebot/2.1")).await;
        assert_eq!((seen.status(), seen.json()["message"].as_str()), (403, Some("Forbidden")));
        assert_eq!(seen.json()["request_id"], seen.cx.id.as_str());
        let seen = rig.run(get("/").with("user-agent", "a").with("user-agent", "b")).await;
        assert_eq!((seen.status(), seen.json()["message"].as_str()), (400, Some("Only one User-Agent header allowed")));
        assert_eq!(rig.run(get("/")).await.status(), 200);
        assert_eq!(rig.outcome("bot-detection", "refused"), 2);
    }

    #[test]
    fn bad_expressions_are_named_where_they_stand() {
        let found = errors("bot-detection", "deny:\n  - ok\n  - 'a('\n");
        assert_eq!(found[0].span.line, 3);
        assert!(found[0].message.contains("this is not a regular expression: unclosed group"), "{}", found[0]);
    }

    #[test]
    fn the_list_compiles() {
        assert!(super::BOTS.is_some());
    }
}
