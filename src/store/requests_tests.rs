use super::*;
use crate::store::RealFs;
use serde_json::json;

fn bench() -> (tempfile::TempDir, Layout) {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::open(&RealFs, &dir.path().join("state")).unwrap();
    (dir, layout)
}

fn reprocess(scan: Option<&str>) -> Request {
    let recipe = json!({ "center": 301.5 }).as_object().unwrap().clone();
    Request::Reprocess { stream: "s".into(), scan: scan.map(str::to_owned), recipe }
}

fn said(outcome: &str) -> Outcome {
    Outcome { outcome: outcome.into(), text: String::new(), at_ms: 1, pilot: "p".into() }
}

#[test]
fn what_is_asked_is_read_back_in_order() {
    let (_dir, layout) = bench();
    let requests = [
        reprocess(Some("day 1/a.h5")),
        reprocess(None),
        Request::Urgent { stream: "s".into(), scan: "a".into() },
        Request::Hold { stream: "s".into() },
        Request::Resume { stream: "s".into() },
        Request::Skip { stream: "s".into(), scan: "a".into() },
        Request::Release { stream: "s".into(), scan: "a".into() },
    ];
    for request in &requests {
        submit(&RealFs, &layout, "me", request).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let found: Vec<Request> = all(&RealFs, &layout).unwrap().into_iter().filter_map(|a| a.request).collect();
    assert_eq!(found, requests);
    assert_eq!(requests[0].line(), "reprocess s/day 1/a.h5 center=301.5");
    assert_eq!(requests[1].line(), "reprocess s from now on center=301.5");
}

#[test]
fn what_is_asked_later_comes_later_whatever_the_clocks_say() {
    let (_dir, layout) = bench();
    let (hold, resume) = (Request::Hold { stream: "s".into() }, Request::Resume { stream: "s".into() });
    // From a host whose clock is an hour ahead.
    let ahead = format!("{:013}-ab", now_ms() + 3_600_000);
    assert!(submit_as(&RealFs, &layout, &ahead, "ahead", &hold).unwrap());
    let now = submit(&RealFs, &layout, "here", &resume).unwrap();
    assert!(now > ahead, "{now} {ahead}");
    let found: Vec<Request> = all(&RealFs, &layout).unwrap().into_iter().filter_map(|a| a.request).collect();
    assert_eq!(found, [hold.clone(), resume]);
    assert!(Fold::of(&found).held.is_empty());
    // Even the last time that there is loses nothing.
    assert!(submit_as(&RealFs, &layout, "9999999999999-ab", "mad", &hold).unwrap());
    let last = submit(&RealFs, &layout, "here", &hold).unwrap();
    assert_eq!((id_ms(&last), ids(&RealFs, &layout).unwrap().0.len()), (Some(9_999_999_999_999), 4));
}

#[test]
fn what_is_no_request_is_refused_with_the_reason() {
    let deep = format!("{}1{}", "[".repeat(200_000), "]".repeat(200_000));
    let (_dir, layout) = bench();
    for (i, (text, want)) in [
        ("", "no request"),
        ("{\"request_version\":1", "no request"),
        ("{\"request_version\":2,\"request\":{\"do\":\"hold\",\"stream\":\"s\"}}", "version 2"),
        ("{\"request_version\":1,\"request\":{\"do\":\"hold\",\"stream\":\"s\",\"scan\":\"x\"}}", "unknown field"),
        ("{\"request_version\":1,\"request\":{\"do\":\"run\",\"stream\":\"s\"}}", "unknown variant"),
        ("{\"request_version\":1,\"x\":1,\"request\":{\"do\":\"hold\",\"stream\":\"s\"}}", "unknown field"),
        ("{\"request_version\":1,\"request\":{\"do\":\"hold\",\"stream\":\"../s\"}}", "no stream's name"),
        (
            "{\"request_version\":1,\"request\":{\"do\":\"skip\",\"stream\":\"s\",\"scan\":\"../../x\"}}",
            "no scan's name",
        ),
        ("{\"request_version\":1,\"request\":{\"do\":\"skip\",\"stream\":\"s\",\"scan\":\"/etc\"}}", "no scan's name"),
        ("{\"request_version\":1,\"request\":{\"do\":\"skip\",\"stream\":\"s\",\"scan\":\"a\\nb\"}}", "no scan's name"),
        (&deep, "larger than"),
    ]
    .iter()
    .enumerate()
    {
        let id = format!("{:013}-ab", 1_700_000_000_000u64 + i as u64);
        std::fs::write(layout.state.join(format!("requests/{id}.json")), text).unwrap();
        let problem = read(&RealFs, &layout, &id).unwrap().unwrap_err();
        assert!(problem.contains(want), "{text}: {problem}");
    }
    let link = layout.state.join("requests/1700000000099-ab.json");
    std::os::unix::fs::symlink("/etc/passwd", link).unwrap();
    assert!(read(&RealFs, &layout, "1700000000099-ab").unwrap().unwrap_err().contains("ordinary"));
}

#[test]
fn other_names_in_the_inbox_are_not_looked_at() {
    let (_dir, layout) = bench();
    for name in ["README", "x.json", ".tmp-1700000000000-ab.json", "1700000000000.json", "1700000000000-xyz.json"] {
        std::fs::write(layout.state.join("requests").join(name), "{}").unwrap();
    }
    assert_eq!(ids(&RealFs, &layout).unwrap(), Default::default());
}

#[test]
fn the_first_answer_stands_and_acceptance_moves_on() {
    let (_dir, layout) = bench();
    let id = submit(&RealFs, &layout, "me", &reprocess(None)).unwrap();
    let answer = |o: &str| answer(&RealFs, &layout, &id, &said(o)).unwrap();
    assert!(answer(ACCEPTED) && !answer(ACCEPTED));
    assert!(answer(DONE) && !answer(REFUSED) && !answer(ACCEPTED));
    assert_eq!(outcome(&RealFs, &layout, &id).unwrap().outcome, DONE);
}

#[test]
fn the_fold_takes_the_last_word() {
    let hold = Request::Hold { stream: "s".into() };
    let resume = Request::Resume { stream: "s".into() };
    let skip = Request::Skip { stream: "s".into(), scan: "a".into() };
    assert_eq!(Fold::of([&hold, &resume]), Fold::default());
    assert!(Fold::of([&resume, &hold]).held.contains("s"));
    assert_eq!(Fold::of([&skip]).skipped.len(), 1);
    assert!(Fold::of([&skip, &reprocess(Some("a"))]).skipped.is_empty());
    assert_eq!(Fold::of([&skip, &reprocess(None)]).skipped.len(), 1);
}

#[test]
fn overrides_are_laid_over_the_campaigns_recipe() {
    let base: toml::Table = toml::from_str("center = 1.0\nfilter = \"hann\"\n[deep]\na = 1\nb = 2").unwrap();
    let over = json!({ "center": 2.5, "deep": { "b": 3 } });
    let merged = merge(&base, over.as_object().unwrap()).unwrap();
    let want: toml::Table = toml::from_str("center = 2.5\nfilter = \"hann\"\n[deep]\na = 1\nb = 3").unwrap();
    assert_eq!(merged, want);
    assert!(merge(&base, json!({ "center": null }).as_object().unwrap()).is_err());
}
