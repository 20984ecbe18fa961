//! Asks the HTTP ports of processes: health, readiness, metrics, and what time it is there.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use aquifer_runtime::clock::{self, Clock, SystemClock};
use aquifer_runtime::secret::Secret;

use crate::args::ConnectArgs;
use crate::exit::CliError;

/// What is asked.
const PATHS: [&str; 3] = ["healthz", "readyz", "metrics"];
/// How long one answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Most bytes of one answer.
const ANSWER_BYTES_MAX: usize = 16 << 20;
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// A status with the body behind it; or why there is no answer.
pub type Answer = Result<(u16, String), String>;

/// What a process answered.
#[derive(Debug, Default)]
pub struct Probed {
    /// Where it was asked.
    pub url: String,
    /// How far its clock is ahead of this machine's, in seconds; negative: behind.
    pub ahead_s: Option<i64>,
    /// What was asked, and the answer.
    pub answers: Vec<(&'static str, Answer)>,
}

impl Probed {
    /// A complete answer to one of the paths.
    pub fn answer(&self, path: &str) -> Option<&str> {
        let found = self.answers.iter().find(|(asked, _)| *asked == path);
        match found {
            Some((_, Ok((200, text)))) => Some(text),
            _ => None,
        }
    }

    /// Values of a metric, with their labels.
    pub fn metric<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        let lines = self.answer("metrics").unwrap_or_default().lines();
        lines.filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let is_whole = labels.is_empty() || labels.starts_with('{');
            let value = value.parse().ok().filter(|_| is_whole)?;
            Some((labels, value))
        })
    }
}

/// Asks processes over HTTP.
pub struct Prober {
    client: reqwest::Client,
    token: Option<Secret>,
}

impl Prober {
    /// With the authorities and the token that the caller's arguments name.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn new(args: &ConnectArgs) -> Result<Prober, CliError> {
        let unusable = |error: String| CliError::usage(error);
        let mut builder = reqwest::Client::builder().timeout(ANSWER_MAX).no_proxy();
        if let Some(path) = &args.tls_ca_file {
            let shown = path.display();
            let pem = fs::read(path).map_err(|error| unusable(format!("{shown}: {error}")))?;
            let all = reqwest::Certificate::from_pem_bundle(&pem);
            let all = all.map_err(|error| unusable(format!("{shown}: {error}")))?;
            builder = builder.tls_certs_only(all);
        }
        let token = match &args.token_file {
            Some(path) => {
                let text = fs::read_to_string(path)
                    .map_err(|error| unusable(format!("{}: {error}", path.display())))?;
                Some(Secret::new(text.trim()))
            }
            None => None,
        };
        let client = builder
            .build()
            .map_err(|error| CliError::failed(format!("no HTTP client: {error}")))?;
        Ok(Prober { client, token })
    }

    /// Asks one process everything.
    pub async fn ask(&self, url: &str) -> Probed {
        let url = url.trim_end_matches('/');
        let url = match url.contains("://") {
            true => url.to_owned(),
            false => format!("http://{url}"),
        };
        let mut probed = Probed {
            url: url.clone(),
            ..Probed::default()
        };
        for path in PATHS {
            let asked = clock::timeout(ANSWER_MAX, self.get(&url, path, &mut probed.ahead_s)).await;
            let late = || Err(format!("no answer within {ANSWER_MAX:?}"));
            let answer = asked.unwrap_or_else(|_| late());
            probed.answers.push((path, answer));
        }
        probed
    }

    async fn get(&self, url: &str, path: &str, ahead_s: &mut Option<i64>) -> Answer {
        let mut request = self.client.get(format!("{url}/{path}"));
        if let Some(token) = self.token.as_ref().filter(|_| is_private(url)) {
            request = request.bearer_auth(token.expose());
        }
        let answered = request.send().await;
        let mut response = answered.map_err(|error| with_causes(&error))?;
        let now_s = SystemClock.wall_ms() / 1000;
        let date = response.headers().get("date");
        let date = date.and_then(|date| date.to_str().ok()).and_then(seconds);
        if let Some(date) = date {
            let (there, here) = (i64::try_from(date), i64::try_from(now_s));
            *ahead_s = there.ok().zip(here.ok()).map(|(there, here)| there - here);
        }
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(part) = response
            .chunk()
            .await
            .map_err(|error| with_causes(&error))?
        {
            if body.len() + part.len() > ANSWER_BYTES_MAX {
                return Err(format!("the answer has more than {ANSWER_BYTES_MAX} bytes"));
            }
            body.extend_from_slice(&part);
        }
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// Whether others in between cannot read what is sent there.
fn is_private(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else {
        return false;
    };
    let host = url.host_str().unwrap_or_default();
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
    url.scheme() == "https" || host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Seconds since 1970 of the date of an HTTP answer, as `Sun, 06 Nov 1994 08:49:37 GMT`.
fn seconds(date: &str) -> Option<u64> {
    let mut words = date.split([' ', ':']).skip(1);
    let day: u64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month)?;
    let month = u64::try_from(month).ok()? + 1;
    let year: u64 = words.next()?.parse().ok()?;
    let (hour, minute, second): (u64, u64, u64) = (
        words.next()?.parse().ok()?,
        words.next()?.parse().ok()?,
        words.next()?.parse().ok()?,
    );
    if !(1970..=9999).contains(&year) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Years that begin in March have the day that comes and goes at their end.
    let (year, month) = match month {
        1 | 2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    let since = days.checked_sub(719_469)?;
    Some(((since * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_answers_are_read() {
        assert_eq!(seconds("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(
            seconds("Thu, 29 Feb 2024 12:00:00 GMT"),
            Some(1_709_208_000)
        );
        for wrong in [
            "",
            "today",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 99:49:37 GMT",
        ] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn metrics_are_found_by_their_whole_name() {
        let text = "# TYPE a gauge\na 1\na_b 2\na{port=\"x\"} 3\n".to_owned();
        let probed = Probed {
            answers: vec![("metrics", Ok((200, text)))],
            ..Probed::default()
        };
        let found: Vec<_> = probed.metric("a").collect();
        assert_eq!(found, [("", 1.0), ("{port=\"x\"}", 3.0)]);
        assert_eq!(probed.answer("healthz"), None);
    }

    #[test]
    fn tokens_are_not_sent_where_others_can_read_them() {
        assert!(is_private("https://b1:7681"));
        assert!(is_private("http://127.0.0.1:7681") && is_private("http://localhost:1/x"));
        assert!(is_private("http://[::1]:7681"));
        assert!(!is_private("http://127.evil.example") && !is_private("no address"));
        assert!(!is_private("http://localhost.evil.example:7681"));
        assert!(!is_private("http://b1:7681"));
    }
}
