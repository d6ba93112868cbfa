//! Where exec, attach and port-forward are served, and by which certificate.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};

use super::expiry;
use super::finding::Finding;
use crate::config::Config;
use crate::config::file::Stream;
use crate::stream::certificate;
use crate::sys::interfaces;

const SUBJECT: &str = "streaming";
/// When a certificate is about to end.
const SOON: SignedDuration = SignedDuration::from_hours(14 * 24);
/// The state of a socket that listens, in the kernel's tables.
const LISTENS: &str = "0A";

#[derive(Debug)]
pub(super) struct Facts {
    section: Stream,
    /// Whether the address is one of this host; `None` for a name.
    is_local: Option<bool>,
    /// Whether somebody listens on the port, where it is a certain one.
    port_taken: bool,
    /// The end of the certificate of files, if there is one.
    certificate: Result<Option<Option<Timestamp>>, String>,
    now: Timestamp,
}

pub(super) fn gather(config: &Config) -> Facts {
    let section = config.file.stream.clone();
    let certificate = certificate::configured(&section)
        .map(|found| found.map(|der| expiry::not_after(&der)))
        .map_err(|error| error.message().to_owned());
    let address = section.address.parse::<IpAddr>().ok();
    let is_local = address.map(|address| {
        let own = interfaces::addresses().unwrap_or_default();
        address.is_unspecified() || address.is_loopback() || own.contains(&address)
    });
    let tables =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let port_taken = section.port != 0 && tables.iter().any(|table| listens(table, section.port));
    Facts { section, is_local, port_taken, certificate, now: Timestamp::now() }
}

/// `0: 0100007F:1F90 00000000:0000 0A …`
fn listens(table: &str, port: u16) -> bool {
    let wanted = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let is_it = fields.next().is_some_and(|local| local.ends_with(&wanted));
        is_it && fields.nth(1) == Some(LISTENS)
    })
}

pub(super) fn compare(facts: &Facts, server_runs: bool) -> Vec<Finding> {
    let section = &facts.section;
    let port = match section.port {
        0 => "any free port".to_owned(),
        port => format!("port {port}"),
    };
    let place = format!("{}, {port}", section.address);
    let mut findings = vec![if facts.is_local == Some(false) {
        Finding::problem(
            SUBJECT,
            format!("{place}: this host does not have that address"),
            "stream.address must be one of its addresses, or 127.0.0.1 where the kubelet runs here",
        )
    } else if facts.port_taken && !server_runs {
        Finding::problem(
            SUBJECT,
            format!("{place}: somebody listens there already"),
            "stop who does, or choose another stream.port (0 for any)",
        )
    } else {
        Finding::ok(SUBJECT, place)
    }];
    findings.push(tls(facts));
    findings
}

fn tls(facts: &Facts) -> Finding {
    let path = facts.section.tls_cert_file.display();
    let renew = "renew the files and restart the server";
    match &facts.certificate {
        Err(wrong) => Finding::problem(SUBJECT, wrong.clone(), "the server does not start with it"),
        Ok(None) if facts.section.tls_self_signed => {
            Finding::ok(SUBJECT, "TLS by a certificate that each start makes")
        }
        Ok(None) => Finding::ok(SUBJECT, "without TLS"),
        Ok(Some(None)) => Finding::note(SUBJECT, format!("TLS by {path}, whose end cannot be read"), renew),
        Ok(Some(Some(end))) if *end <= facts.now => {
            Finding::problem(SUBJECT, format!("TLS by {path}, which has ended at {end}"), renew)
        }
        Ok(Some(Some(end))) if end.duration_since(facts.now) < SOON => {
            Finding::note(SUBJECT, format!("TLS by {path}, which ends soon, at {end}"), renew)
        }
        Ok(Some(Some(end))) => Finding::ok(SUBJECT, format!("TLS by {path}, good until {end}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn facts() -> Facts {
        Facts {
            section: Stream { port: 10010, tls_cert_file: "/c.pem".into(), ..Stream::default() },
            is_local: Some(true),
            port_taken: false,
            certificate: Ok(None),
            now: "2030-01-01T00:00:00Z".parse().expect("a time"),
        }
    }

    fn verdicts(facts: &Facts, server_runs: bool) -> Vec<Verdict> {
        compare(facts, server_runs).iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn a_port_that_is_taken_is_a_problem_unless_the_server_has_it() {
        use Verdict::{Ok, Problem};
        assert_eq!(verdicts(&facts(), false), [Ok, Ok]);
        let taken = Facts { port_taken: true, ..facts() };
        assert_eq!(verdicts(&taken, false), [Problem, Ok]);
        assert_eq!(verdicts(&taken, true), [Ok, Ok]);
        let elsewhere = Facts { is_local: Some(false), ..facts() };
        assert_eq!(verdicts(&elsewhere, true), [Problem, Ok]);
    }

    #[test]
    fn the_end_of_a_certificate_is_told() {
        let ends = |text: &str| {
            let end = Some(text.parse().expect("a time"));
            verdicts(&Facts { certificate: Ok(Some(end)), ..facts() }, false)[1]
        };
        assert_eq!(ends("2031-01-01T00:00:00Z"), Verdict::Ok);
        assert_eq!(ends("2030-01-03T00:00:00Z"), Verdict::Note);
        assert_eq!(ends("2029-01-01T00:00:00Z"), Verdict::Problem);
        let broken = Facts { certificate: Err("no such file".into()), ..facts() };
        assert_eq!(verdicts(&broken, false)[1], Verdict::Problem);
        assert_eq!(verdicts(&Facts { certificate: Ok(Some(None)), ..facts() }, false)[1], Verdict::Note);
    }

    #[test]
    fn listeners_are_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st\n   0: 0100007F:1F90 00000000:0000 0A 0\n   1: 0100007F:1F91 0100007F:1F90 01 0\n";
        assert!(listens(table, 8080) && !listens(table, 8081) && !listens(table, 80));
    }
}
