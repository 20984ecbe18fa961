//! Which requests a server answers that trusts whatever reaches it on this machine: those that were
//! meant for this machine. A web page that a browser of this machine shows can reach such a server
//! too, by a name of its own that leads here, or from another site. The browser tells both.

use std::net::IpAddr;

use aquifer_proto::v1::ErrorCode;
use http::header::{HOST, ORIGIN};
use http::request::Parts;
use http::uri::Authority;

use crate::problem::Problem;

const LOCALHOST: &str = "localhost";

/// Refuses what was meant for another name, or comes from a page of another machine.
pub(super) fn check(parts: &Parts) -> Result<(), Problem> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let (host, other) = (hosts.next(), hosts.next());
    let host = host.and_then(|host| host.to_str().ok());
    let target = parts.uri.authority().map(Authority::as_str);
    let named = [target, host].into_iter().flatten();
    let is_meant_for_here =
        other.is_none() && (target.is_some() || host.is_some()) && named.into_iter().all(is_local);
    if !is_meant_for_here {
        return Err(refusal("the request names another host than this machine"));
    }
    let mut origins = parts.headers.get_all(ORIGIN).iter();
    let is_of_here = origins.all(|origin| {
        let origin = origin.to_str().ok();
        let authority = origin.and_then(|origin| origin.split_once("://"));
        authority.is_some_and(|(_, authority)| is_local(authority))
    });
    match is_of_here {
        true => Ok(()),
        false => Err(refusal("the request comes from a page of another host")),
    }
}

fn refusal(text: &str) -> Problem {
    let problem = Problem::new(ErrorCode::PermissionDenied, text);
    problem.advise(
        "this server does not authenticate its callers, so it is for this machine alone: use localhost or \
         127.0.0.1, or start it with --auth",
    )
}

/// Whether a host, with or without a port, is this machine under a name that no name server gives.
fn is_local(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<Authority>() else {
        return false;
    };
    let host = authority.host();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let is_address = bare
        .parse()
        .is_ok_and(|address: IpAddr| address.to_canonical().is_loopback());
    let name = bare.to_ascii_lowercase();
    is_address || name == LOCALHOST || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn passes(uri: &str, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap().into_parts().0).is_ok()
    }

    #[test]
    fn only_names_of_this_machine_pass() {
        for host in [
            "localhost",
            "LOCALHOST:7680",
            "a.localhost",
            "127.0.0.1:7680",
            "127.8.0.1",
            "[::1]:7680",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(passes("/x", &[("host", host)]), "{host}");
            assert!(passes(&format!("http://{host}/x"), &[]), "{host}");
        }
        for host in [
            "evil.example:7680",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "0.0.0.0",
            "[::]",
            "evil.example@127.0.0.1:1:2",
            "",
        ] {
            assert!(!passes("/x", &[("host", host)]), "{host}");
        }
        assert!(!passes("/x", &[]), "without a host");
        let two = [("host", "localhost"), ("host", "evil.example")];
        assert!(!passes("/x", &two));
        assert!(!passes("http://evil.example/x", &[("host", "localhost")]));
    }

    #[test]
    fn pages_of_other_hosts_do_not_pass() {
        let from = |origin| passes("/x", &[("host", "localhost"), ("origin", origin)]);
        assert!(from("http://localhost:3000") && from("https://127.0.0.1"));
        assert!(!from("https://evil.example") && !from("null") && !from("file://"));
    }
}
