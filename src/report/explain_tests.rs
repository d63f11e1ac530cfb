use super::*;
use crate::coordinator::view::JobView;

fn empty() -> Explanation {
    Explanation {
        explain_version: VERSION,
        stream: "s".into(),
        scan: "a".into(),
        state: String::new(),
        line: String::new(),
        published: vec![],
        quarantined: vec![],
        claims: vec![],
        pilots: vec![],
        history: vec![],
        requests: vec![],
        held: false,
        drains: vec![],
        arrivals: vec![],
    }
}

fn seen(phase: &str) -> Seen {
    let job = JobView {
        stream: "s".into(),
        name: "a".into(),
        phase: phase.into(),
        done: 3,
        tasks: 9,
        lag_s: 1.0,
        late: false,
        urgent: false,
        owner: None,
        workers: vec!["n1:4".into()],
    };
    let (pilot, life) = ("p".into(), "alive".into());
    Seen { pilot, life, as_of_ms: 1_000_000, job, paused: None, draining: false, waiting: 7, workers: 2 }
}

#[test]
fn each_state_has_its_words() {
    type Change = fn(&mut Explanation);
    let cases: [(Change, &str, &str); 9] = [
        (|e| e.pilots = vec![seen("elsewhere"), seen("computing")], "running", "3 of 9 tasks done in pilot p on n1:4"),
        (|e| e.pilots = vec![seen("waiting")], "waiting", "7 scans of its stream wait for 2 workers"),
        (|e| e.pilots = vec![Seen { draining: true, ..seen("waiting") }], "waiting", "drains"),
        (|e| e.pilots = vec![Seen { paused: Some("disk full".into()), ..seen("waiting") }], "waiting", "disk full"),
        (|e| (e.held, e.pilots) = (true, vec![seen("waiting")]), "held", "request resume s"),
        (|e| e.pilots = vec![seen("elsewhere")], "elsewhere", "another pilot"),
        (
            |e| {
                let (key, owner, life) = (String::new(), "q".to_owned(), "dead".to_owned());
                e.claims = vec![ClaimView { key, generation: 1, owner, life, at_ms: 0, released: false }];
            },
            "interrupted",
            "q began it and is dead",
        ),
        (
            |e| {
                let failed =
                    |n| Happened { at_ms: n, pilot: "p".into(), what: "failed".into(), detail: format!("no {n}") };
                let claimed = Happened { what: "claimed".into(), ..failed(1) };
                (e.history, e.pilots) = (vec![failed(0), claimed, failed(2), failed(3)], vec![seen("computing")]);
            },
            "running",
            "2 tries failed, last 1970-01-01 00:00:00 UTC: no 3",
        ),
        (|_| {}, "arriving", "it settles"),
    ];
    for (change, state, words) in cases {
        let mut e = empty();
        change(&mut e);
        let (found, line) = verdict(&e, false, true, 1, &|_| "it settles".to_owned());
        assert!(found == state && line.contains(words), "{state}: {found}: {line}");
    }
    let state = |skipped, there, living| verdict(&empty(), skipped, there, living, &|_| String::new()).0;
    assert_eq!(state(true, true, 1), "skipped");
    assert_eq!(state(false, false, 1), "gone");
    assert_eq!(state(false, true, 0), "no-pilot");
}
