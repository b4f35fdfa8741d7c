//! The report as a reader meets it: in headless Chromium, from the disk, with no network. Where Chromium is not installed these
//! tests are left out, unless CI is set.
use crate::support::{demo, error_line, repository, run, succeed, tanglescope};
use headless_chrome::browser::tab::Tab;
use headless_chrome::protocol::cdp::types::Event;
use headless_chrome::{Browser, LaunchOptionsBuilder};
use polars_core::prelude::DataFrame;
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tanglescope_records::Table;

/// Chromium, where it is there.
fn browser() -> Option<Browser> {
    let places = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
    let path = places.map(PathBuf::from).into_iter().find(|path| path.is_file());
    if path.is_none() {
        assert!(std::env::var_os("CI").is_none(), "Chromium is not installed; Debian's package is `chromium`");
        eprintln!("left out: Chromium is not installed");
        return None;
    }
    let quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"];
    let options = LaunchOptionsBuilder::default()
        .path(path)
        .sandbox(false)
        .window_size(Some((1280, 900)))
        .idle_browser_timeout(Duration::from_mins(2))
        .args(quiet.map(OsStr::new).to_vec())
        .build()
        .unwrap();
    Some(Browser::new(options).unwrap())
}

/// A page, and what it complained of or asked the network for.
struct Page {
    tab: Arc<Tab>,
    complaints: Arc<Mutex<Vec<String>>>,
}

impl Page {
    fn open(browser: &Browser, file: &Path) -> Self {
        let tab = browser.new_tab().unwrap();
        let complaints = Arc::new(Mutex::new(Vec::new()));
        tab.enable_log().unwrap().enable_runtime().unwrap();
        tab.call_method(headless_chrome::protocol::cdp::Network::Enable {
            max_total_buffer_size: None,
            max_resource_buffer_size: None,
            max_post_data_size: None,
            report_direct_socket_traffic: None,
            enable_durable_messages: None,
        })
        .unwrap();
        let heard = Arc::clone(&complaints);
        let listen = move |event: &Event| {
            let said = match event {
                Event::LogEntryAdded(entry) => Some(format!("log: {}", entry.params.entry.text)),
                Event::RuntimeExceptionThrown(thrown) => {
                    Some(format!("exception: {:?}", thrown.params.exception_details))
                }
                Event::RuntimeConsoleAPICalled(call) => Some(format!("console: {:?}", call.params.args)),
                Event::NetworkRequestWillBeSent(request) => Some(&request.params.request.url)
                    .filter(|url| !url.starts_with("file:") && !url.starts_with("blob:") && !url.starts_with("data:"))
                    .map(|url| format!("request: {url}")),
                _ => None,
            };
            heard.lock().unwrap().extend(said);
        };
        tab.add_event_listener(Arc::new(listen)).unwrap();
        tab.navigate_to(&format!("file://{}", file.display())).unwrap().wait_until_navigated().unwrap();
        let page = Self { tab, complaints };
        assert_eq!(page.get("typeof window.report"), "object", "the script ran to its end: {:?}", page.heard());
        page
    }

    fn heard(&self) -> Vec<String> {
        self.complaints.lock().unwrap().clone()
    }

    /// The value of an expression.
    #[track_caller]
    fn get(&self, expression: &str) -> Value {
        let whole = format!("JSON.stringify({expression})");
        let object = self.tab.evaluate(&whole, false).unwrap_or_else(|e| panic!("{expression}: {e}"));
        object.value.and_then(|text| serde_json::from_str(text.as_str()?).ok()).unwrap_or(Value::Null)
    }

    /// Marks of each series of a chart that have a finite value; null where it is not drawn.
    fn marks(&self, chart: &str) -> Value {
        self.get(&format!(
            "report.charts['{chart}'] ? report.charts['{chart}'].getOption().series.map((s) => s.data.filter((d) => {{ \
             const v = d?.value ?? d, last = Array.isArray(v) ? v[v.length - 1] : v; return Number.isFinite(last); }}).length) : null"
        ))
    }

    /// Chooses a value that is kept as JSON.
    fn select(&self, id: &str, value: &Value) {
        self.select_plain(id, &value.to_string());
    }

    fn select_plain(&self, id: &str, value: &str) {
        let value = json!(value);
        self.get(&format!(
            "(() => {{ const s = document.getElementById('{id}'); s.value = {value}; s.onchange(); return 0; }})()"
        ));
    }
}

/// A demo model trained for a few steps on two objectives, swept on two sets, with matrices of the first, reported.
fn reported(folder: &Path) -> PathBuf {
    let text = |name: &str| folder.join(name).display().to_string();
    let model = demo().display().to_string();
    let rows: String = std::fs::read_to_string(demo().join("long.jsonl"))
        .unwrap()
        .lines()
        .take(12)
        .map(|l| format!("{l}\n"))
        .collect();
    // text that would be a script, if anything took it for one
    let evil = json!({"id": "<script>alert('id')</script>", "prompt": "</script><script>window.broken = 1</script>",
        "chosen": " good <img src=x onerror=\"window.broken = 2\">", "rejected": " bad & <b>bold</b>"});
    std::fs::write(folder.join("long.jsonl"), format!("{rows}{evil}\n")).unwrap();
    let short: String = std::fs::read_to_string(demo().join("short.jsonl"))
        .unwrap()
        .lines()
        .take(8)
        .map(|l| format!("{l}\n"))
        .collect();
    std::fs::write(folder.join("short.jsonl"), short).unwrap();
    for objective in ["dpo", "simpo"] {
        let words = [
            "train",
            "--model",
            &model,
            "--data",
            &text("long.jsonl"),
            "--out",
            &text(objective),
            "--objective",
            objective,
        ];
        let rest = [
            "--max-steps",
            "4",
            "--save-every",
            "2",
            "--batch-size",
            "4",
            "--predict-every",
            "2",
            "--learning-rate",
            "1e-3",
        ];
        succeed([words.as_slice(), &rest, &["--warmup-steps", "0", "--device", "cpu"]].concat());
    }
    let words = ["sweep", &text("dpo"), &text("simpo"), "--data", &text("long.jsonl"), "--data", &text("short.jsonl")];
    let rest = ["--out", &text("sweep"), "--objective", "dpo", "--objective", "simpo", "--device", "cpu"];
    succeed([words.as_slice(), &rest].concat());
    let words = ["tokens", "--model", &model, "--adapter", &text("dpo/checkpoint-4"), "--data", &text("long.jsonl")];
    succeed([words.as_slice(), &["--out", &text("tokens"), "--device", "cpu"]].concat());
    // matrices of other tokens, under the same numbers, belong to no pair that is shown
    let words = ["tokens", "--model", &model, "--adapter", &text("dpo/checkpoint-4"), "--data", &text("long.jsonl")];
    succeed(
        [words.as_slice(), &["--eos", "none", "--limit", "2", "--out", &text("stale"), "--device", "cpu"]].concat(),
    );
    let page = folder.join("report.html");
    let output = run(["report", &text("sweep"), &text("tokens"), &text("stale"), "--out", &page.display().to_string()]);
    assert!(output.status.success(), "{}", error_line(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("stale: of no records that are shown"));
    page
}

#[test]
fn the_page_shows_what_the_records_hold() {
    let Some(browser) = browser() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = reported(folder.path());
    let page = Page::open(&browser, &file);

    // every chart, with a mark for each thing that it shows: 2 runs, 3 steps, 2 data sets, 13 and 8 pairs
    assert_eq!(page.get("document.getElementById('run').value"), json!("\"dpo\""));
    page.select("dataset", &json!("long"));
    assert_eq!(page.marks("c-logp"), json!([3, 3, 3, 3]));
    assert_eq!(page.marks("c-margin"), json!([3, 3]));
    assert_eq!(page.marks("c-cosine"), json!([3, 3]));
    assert_eq!(page.marks("c-norms"), json!([3, 3, 3, 3]));
    assert_eq!(page.marks("c-regimes"), json!([3, 3, 3, 3, 3]));
    assert_eq!(page.marks("c-band")[2], json!(4), "the ratio of every step of training");
    let predictions =
        page.get("report.data.training.find((t) => t.run === 'dpo').predictions.branch.length").as_u64().unwrap();
    let marks = page.marks("c-predicted");
    assert_eq!(marks[0].as_u64().unwrap() + marks[1].as_u64().unwrap(), predictions);
    assert!(predictions > 0);
    assert_eq!(page.marks("c-objectives"), json!([2, 2, 2, 2, 2]));
    assert_eq!(page.marks("c-sets"), json!([2]));
    assert_eq!(page.marks("c-layers"), json!([20]), "q, k, v, o of five layers");
    assert_eq!(page.marks("c-hist-cosine"), json!([40]));
    assert_eq!(page.marks("c-hist-condition"), json!([40]));
    let scatter: u64 = page.marks("c-scatter").as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(scatter, 13);
    let related = page.get(
        "(() => { const t = report.data.tables.relations; return t.leaf.filter((n, i) => n === report.data.leaves.findIndex((l) => \
         l.run === 'dpo' && l.step === 4 && l.dataset === 'long') && t.metric[i] === 'cosine' && t.spearman[i] !== null).length; })()",
    );
    assert!(related.as_u64().unwrap() > 3);
    assert_eq!(page.marks("c-relations"), json!([related, related]));
    tenths(&page);
    // and nothing else
    assert_eq!(page.get("Object.keys(report.charts).length"), json!(17));
    steps_taken_apart(&page);
    assert_eq!(page.get("report.charts['c-hist-cosine'].getModel().getSeries()[0].getData().mapArray('y', (y) => y).reduce((a, b) => a + b)"), json!(13));

    // numbers are the parquet's, to the last digit
    let leaf = folder.path().join("sweep/run=dpo/step=4/dataset=long");
    let pairs = Table::at(&leaf, "pairs.parquet").read(0).unwrap();
    for column in ["cosine", "logp_chosen", "ww", "wl", "ll"] {
        let stored: Vec<f64> = pairs.column(column).unwrap().f64().unwrap().iter().flatten().collect();
        let shown = page.get(&format!(
            "(() => {{ const d = report.data, n = d.leaves.findIndex((l) => l.run === 'dpo' && l.step === 4 && l.dataset === 'long'); \
             return d.pairs['{column}'].filter((_, i) => d.pairs.leaf[i] === n); }})()"
        ));
        assert_eq!(shown, json!(stored), "{column}");
    }
    let first = page.get("[...document.querySelector('#pairs tbody tr').cells].map((c) => c.textContent)");
    let cosine = pairs.column("cosine").unwrap().f64().unwrap().get(0).unwrap();
    assert_eq!(first[3], json!(format!("{cosine:.4}")));

    // sort, filter, open
    let column = |at: usize| {
        page.get(&format!(
            "[...document.querySelectorAll('#pairs tbody tr')].map((r) => Number(r.cells[{at}].textContent))"
        ))
    };
    page.get("(() => { document.querySelector('#pairs th[data-name=cosine] button').click(); return 0; })()");
    let sorted: Vec<f64> = column(3).as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    assert!(sorted.len() == 13 && sorted.is_sorted());
    page.get("(() => { document.querySelector('#pairs th[data-name=cosine] button').click(); return 0; })()");
    assert!(column(3).as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).rev().is_sorted());
    assert_eq!(
        page.get("document.querySelector('#pairs th[data-name=cosine]').getAttribute('aria-sort')"),
        json!("descending")
    );
    let search = |text: &str| {
        page.get(&format!("(() => {{ const f = document.getElementById('f-text'); f.value = '{text}'; f.oninput(); return document.querySelectorAll('#pairs tbody tr').length; }})()"))
    };
    assert_eq!(search("script"), json!(1));
    page.get("(() => { const r = document.querySelector('#pairs tbody tr'); r.focus(); r.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter' })); return 0; })()");
    assert_eq!(page.get("document.getElementById('pair').open"), json!(true));
    // text is text
    let prompt = page.get("document.getElementById('pair-prompt').textContent");
    assert!(prompt.as_str().unwrap().contains("</script><script>window.broken = 1</script>"), "{prompt}");
    assert_eq!(
        page.get("document.getElementById('pair-chosen').textContent"),
        json!(" good <img src=x onerror=\"window.broken = 2\"><|endoftext|>")
    );
    assert_eq!(page.get("window.broken ?? null"), Value::Null);
    assert_eq!(page.get("document.querySelectorAll('main img, dialog img, dialog script').length"), json!(0));
    // tokens against tokens
    let tokens = ["chosen", "rejected"]
        .map(|of| page.get(&format!("document.querySelectorAll('#pair-{of} span').length")).as_u64().unwrap());
    assert_eq!(page.marks("c-matrix"), json!([tokens[0] * tokens[1]]));
    assert_eq!(page.get("report.charts['c-matrix'].getModel().getSeries()[0].getData().mapArray('value', (v) => v).every((v) => v >= -1 && v <= 1)"), json!(true));
    page.select_plain("colour", "pull");
    page.select_plain("block", "ww");
    assert_eq!(page.marks("c-matrix"), json!([tokens[0] * tokens[0]]));
    page.get("(() => { document.getElementById('pair').close(); return 0; })()");
    search("");
    filters(&page, &pairs);
    said_first(&page, folder.path());

    // tables to take away
    let csv = page.get("report.csv(report.data.pairs).split('\\n').length");
    assert_eq!(csv, json!(1 + 2 * 3 * (13 + 8) + 1));
    // light and dark
    let ground = || page.get("getComputedStyle(document.body).backgroundColor");
    let before = ground();
    page.get("(() => { document.getElementById('theme').click(); return 0; })()");
    assert_ne!(ground(), before);
    telephone(&page);
    // the matrix was the eighteenth
    assert_eq!(page.get("Object.keys(report.charts).length"), json!(18));
    paper(&page);
    assert_eq!(page.heard(), Vec::<String>::new());
}

/// A bar for each part of a step and what was measured; what a screen reader is told.
fn steps_taken_apart(page: &Page) {
    // the steps taken apart: a bar a part and what was measured, at steps 0, 2 and 4; nothing was measured between pairs
    assert_eq!(page.marks("c-split"), json!([3, 3, 3, 3, 3]));
    assert_eq!(page.marks("c-first"), json!([3, 3]));
    assert!(["c-batch", "c-heat", "c-spectrum"].iter().all(|chart| page.marks(chart).is_null()));
    // a screen reader is told what a chart shows
    let label = page.get("document.getElementById('c-logp').getAttribute('aria-label')");
    assert!(
        label.as_str().unwrap().starts_with("Log-probability of chosen (solid) and rejected (dashed). "),
        "{label}"
    );
    assert!(label.as_str().unwrap().contains("dpo: 3 values from "), "{label}");
}

/// What is said first is what the records' numbers are.
fn said_first(page: &Page, folder: &Path) {
    let column = |step: u64, name: &str| -> Vec<f64> {
        let leaf = folder.join(format!("sweep/run=dpo/step={step}/dataset=long"));
        let pairs = Table::at(&leaf, "pairs.parquet").read(0).unwrap();
        pairs.column(name).unwrap().f64().unwrap().iter().flatten().collect()
    };
    let median = |mut of: Vec<f64>| {
        of.sort_by(f64::total_cmp);
        of[of.len() / 2]
    };
    let sign = |x: f64| format!("{x:+.2}").replace('-', "−");
    let change = |name: &str| -> Vec<f64> { column(0, name).iter().zip(column(4, name)).map(|(a, b)| b - a).collect() };
    let (chosen, rejected) = (change("logp_chosen"), change("logp_rejected"));
    let falls = chosen.iter().filter(|x| **x < 0.0).count();
    let (verb, hits) = if 2 * falls >= chosen.len() { ("lowered", falls) } else { ("raised", chosen.len() - falls) };
    let headline = page.get("document.getElementById('headline').textContent");
    let headline = headline.as_str().unwrap();
    let start = format!("Training on dpo {verb} the probability of the chosen response for {hits} of 13 pairs (");
    assert!(headline.starts_with(&start), "{headline}");
    assert!(headline.contains(&format!("changed by {} at the median", sign(median(chosen)))), "{headline}");
    assert!(headline.ends_with("from step 0 to step 4."), "{headline}");
    let reasons = page.get("[...document.querySelectorAll('#finding li')].map((li) => li.textContent)");
    let said = |text: &str| {
        let all = reasons.as_array().unwrap();
        assert!(all.iter().any(|reason| reason.as_str().unwrap().contains(text)), "{text}: {reasons}");
    };
    said(&format!(", by {} at the median", sign(median(rejected))));
    said(&format!("their cosine is {:.2} at the median", median(column(4, "cosine"))).replace('-', "−"));
    said("These are only 13 pairs");
    said(&half_of_wl(&folder.join("sweep/run=dpo/step=4/dataset=long")));
    said("By tokens, over 13 pairs");
    // the steps taken apart: changes of chosen below zero, and what the pairs themselves make of them
    let rows = Table::at(&folder.join("dpo"), "predictions.parquet");
    let (mut fell, mut of, mut own_sum) = (0, 0, 0.0);
    for part in rows.parts().unwrap() {
        let rows = rows.read(part.file_stem().unwrap().to_str().unwrap().parse().unwrap()).unwrap();
        let words = |name: &str| -> Vec<String> {
            rows.column(name).unwrap().str().unwrap().iter().flatten().map(str::to_owned).collect()
        };
        let numbers = |name: &str| -> Vec<f64> { rows.column(name).unwrap().f64().unwrap().iter().flatten().collect() };
        let (split, branch) = (words("split"), words("branch"));
        let (own, measured) = (numbers("own"), numbers("measured"));
        for row in (0..rows.height()).filter(|&row| split[row] == "batch" && branch[row] == "w") {
            // the first step's rate is not zero here, and so is no change
            of += usize::from(measured[row] != 0.0);
            if measured[row] < 0.0 {
                fell += 1;
                own_sum += own[row];
            }
        }
    }
    assert!(fell > 0);
    said(&format!("fell {fell} of {of} times"));
    said(&format!("to first order {} is by the pair itself", sign(own_sum)));
    said("What the pair itself does has the sign of the change");
}

/// The sentence of Adam's metric, of 16 pairs.
fn said_in_metric(page: &Page, pairs: &DataFrame) {
    let mut cosines: Vec<f64> = pairs.column("adam_cosine").unwrap().f64().unwrap().iter().flatten().collect();
    cosines.sort_by(f64::total_cmp);
    let median = format!("{:.2}", f64::midpoint(cosines[7], cosines[8])).replace('-', "−");
    let found = page.get("document.getElementById('finding').textContent");
    let want = format!("In the metric of Adam's step the cosine is {median} (95 % interval ");
    assert!(found.as_str().unwrap().contains(&want), "{want}: {found}");
}

/// A line between every two of 16 cells, half way.
fn lines_between_cells(page: &Page) {
    let lines = page.get(
        "(() => { const chart = report.charts['c-heat'], at = (n) => chart.convertToPixel({ seriesIndex: 0 }, [n, n]); \
         const lines = chart.getZr().storage.getDisplayList(true).filter((e) => e.type === 'line' && e.style.lineWidth === 1.5).map((e) => e.shape); \
         const off = (place, coordinate, k) => Math.min(...lines.filter((l) => l[`${coordinate}1`] === l[`${coordinate}2`]).map((l) => Math.abs(l[`${coordinate}1`] - (at(place)[k] + at(place - 1)[k]) / 2))); \
         const worst = Math.max(...Array.from({ length: 15 }, (_, i) => [off(i + 1, 'x', 0), off(i + 1, 'y', 1)]).flat()); \
         return [lines.length, worst < 0.51]; })()",
    );
    assert_eq!(lines, json!([2 * 15, true]));
}

/// The fewest blocks whose parts of wl, summed over the pairs, make a half of it.
fn half_of_wl(leaf: &Path) -> String {
    let rows = Table::at(leaf, "params.parquet").read(0).unwrap();
    let (params, wl) = (rows.column("param").unwrap(), rows.column("wl").unwrap().f64().unwrap().clone());
    let mut parts = std::collections::BTreeMap::<String, f64>::new();
    for (param, wl) in params.str().unwrap().iter().zip(wl.iter()) {
        let block = param.unwrap().split('.').find(|part| part.parse::<usize>().is_ok()).unwrap();
        *parts.entry(block.to_owned()).or_default() += wl.unwrap();
    }
    let all: f64 = parts.values().sum();
    let mut shares: Vec<f64> = parts.values().map(|part| part / all).collect();
    shares.sort_by(|a, b| b.total_cmp(a));
    let few = (1..=shares.len()).find(|&few| shares[..few].iter().sum::<f64>() >= 0.5).unwrap();
    format!(
        "At least half of the inner product of both gradients, over all pairs, is from {few} of {} blocks: ",
        shares.len()
    )
}

/// What pairs do to each other, and the metric in which an optimizer steps.
#[test]
fn pairs_between_and_the_metric() {
    let Some(browser) = browser() else { return };
    let folder = tempfile::tempdir().unwrap();
    let text = |name: &str| folder.path().join(name).display().to_string();
    let model = demo().display().to_string();
    let rows = std::fs::read_to_string(demo().join("long.jsonl")).unwrap();
    let rows: Vec<&str> = rows.lines().take(16).collect();
    std::fs::write(folder.path().join("long.jsonl"), rows.join("\n")).unwrap();
    for run in ["second", "first"] {
        let words =
            ["train", "--model", &model, "--data", &text("long.jsonl"), "--out", &text(run), "--objective", "dpo"];
        let rest = [
            "--max-steps",
            "2",
            "--save-every",
            "2",
            "--batch-size",
            "4",
            "--learning-rate",
            "1e-3",
            "--device",
            "cpu",
        ];
        succeed([words.as_slice(), &rest].concat());
    }
    let trained = text("first/checkpoint-2");
    let of = [
        "--model",
        &model,
        "--adapter",
        &trained,
        "--data",
        &text("long.jsonl"),
        "--objective",
        "simpo",
        "--objective",
        "sft",
        "--device",
        "cpu",
    ];
    succeed([["interference", "--out", &text("between")].as_slice(), &of].concat());
    succeed([["analyze", "--out", &text("metric"), "--metric", "adam"].as_slice(), &of].concat());
    let file = folder.path().join("report.html");
    let folders = [text("metric"), text("between"), text("second"), text("first")];
    succeed(
        [["report", "--out", &file.display().to_string()].as_slice(), &folders.each_ref().map(String::as_str)].concat(),
    );
    let page = Page::open(&browser, &file);

    // as the folders were given; runs without a measured checkpoint come after
    let names = page.get("[...document.getElementById('run').options].map((o) => JSON.parse(o.value))");
    assert_eq!(names, json!(["metric", "between", "first", "second"]));

    // the metric
    let pairs = Table::at(&folder.path().join("metric"), "pairs.parquet").read(0).unwrap();
    let cell = |column: &str| {
        let at =
            page.get("[...document.querySelectorAll('#pairs th')].findIndex((th) => th.dataset.name === 'cosine')");
        let shown = page.get(&format!("document.querySelector('#pairs tbody tr').cells[{at}].textContent"));
        assert_eq!(shown, json!(format!("{:.4}", pairs.column(column).unwrap().f64().unwrap().get(0).unwrap())));
    };
    assert_eq!(page.get("document.getElementById('metric-choice').hidden"), json!(false));
    said_in_metric(&page, &pairs);
    cell("cosine");
    page.select_plain("metric", "adam");
    cell("adam_cosine");
    let regimes = page.get("report.charts['c-objectives'].getOption().series.map((s) => s.data)");
    page.select_plain("metric", "gradient");
    cell("cosine");
    assert_ne!(page.get("report.charts['c-objectives'].getOption().series.map((s) => s.data)"), regimes);

    // between pairs
    page.select("run", &json!("between"));
    let sizes = Table::at(&folder.path().join("between"), "batch_sizes.parquet").read(0).unwrap();
    let fall = |row: usize| (16.0 * sizes.column("falls_w").unwrap().f64().unwrap().get(row).unwrap()).round();
    // 1, 2, 4, 8 and 16 pairs
    let headline = format!(
        "In random batches of 16, a small step on simpo would lower the probability of the chosen response for {} of 16 pairs (",
        fall(4)
    );
    let said = page.get("document.getElementById('headline').textContent");
    assert!(said.as_str().unwrap().starts_with(&headline), "{said}");
    assert!(said.as_str().unwrap().contains(&format!("a step on each pair alone, for {}.", fall(0))), "{said}");
    assert_eq!(page.marks("c-batch"), json!([5, 5, 5, 5]));
    assert_eq!(page.marks("c-turned"), json!([5, 5, 5, 5]));
    assert_eq!(page.marks("c-spectrum"), json!([32]));
    assert_eq!(page.marks("c-heat"), json!([16 * 16, 0]));
    let shown = || page.get("report.charts['c-batch'].getOption().series[0].data");
    let of_simpo = shown();
    page.select("between-objective", &json!("sft"));
    assert_ne!(shown(), of_simpo);
    let clusters = |cut: &str| {
        page.select_plain("heat-cut", cut);
        page.get("document.getElementById('heat-note').textContent")
    };
    assert!(clusters("0").as_str().unwrap().ends_with(": 16 clusters"));
    lines_between_cells(&page);
    assert!(clusters("2").as_str().unwrap().ends_with(": 1 cluster"));
    couples(&page, folder.path());

    // a run that is known by its own steps
    page.select("run", &json!("second"));
    let said = page.get("document.getElementById('headline').textContent");
    assert!(said.as_str().unwrap().starts_with("In 2 steps of training on dpo, log π(chosen)"), "{said}");
    assert_eq!(page.marks("c-first"), json!([2, 2]));
    assert_eq!(page.get("document.querySelectorAll('#pairs tbody tr').length"), json!(0));
    assert_eq!(page.heard(), Vec::<String>::new());
}

/// Two pairs beside each other, with their texts and cosines: from the form, and from a pair that pulls another down.
fn couples(page: &Page, folder: &Path) {
    page.select("couple-a", &json!(3));
    page.select("couple-b", &json!(5));
    page.get("(() => { document.getElementById('couple-form').requestSubmit(); return 0; })()");
    assert_eq!(page.get("document.getElementById('couple').open"), json!(true));
    let texts = page.get("[...document.querySelectorAll('#couple-texts pre')].map((pre) => pre.textContent)");
    let rows: Vec<Value> = std::fs::read_to_string(folder.join("long.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let chosen = rows[5]["chosen"].as_str().unwrap();
    assert!(texts[4].as_str().unwrap().starts_with(chosen), "{texts}");
    let rows = Table::at(&folder.join("between"), "interference.parquet").read(0).unwrap();
    let product = |a: u64, b: u64, name: &str| {
        let is = |row: &usize| {
            let of = |name: &str| rows.column(name).unwrap().u64().unwrap().get(*row).unwrap();
            of("a") == a && of("b") == b
        };
        rows.column(name).unwrap().f64().unwrap().get((0..rows.height()).find(is).unwrap()).unwrap()
    };
    let cosine = product(3, 5, "ww") / (product(3, 3, "ww") * product(5, 5, "ww")).sqrt();
    let said = page.get("document.querySelector('#couple-numbers dd').textContent");
    let said: f64 = said.as_str().unwrap().replace('−', "-").parse().unwrap();
    // thousandths are kept
    assert!((said - cosine).abs() <= 0.0005 + 1e-9, "{said} {cosine}");
    page.get("(() => { document.getElementById('couple').close(); return 0; })()");
    assert!(page.get("report.data.tables.drags.pair.length").as_u64().unwrap() > 0);
    page.get("(() => { const d = report.data.tables.drags, i = report.data.pairs.leaf.findIndex((l, i) => l === d.leaf[0] && report.data.pairs.pair[i] === d.pair[0]); report.open(i); document.querySelector('#pair-drags button').click(); return 0; })()");
    assert_eq!(page.get("document.getElementById('couple').open"), json!(true));
    page.get(
        "(() => { document.getElementById('couple').close(); document.getElementById('pair').close(); return 0; })()",
    );
}

/// Cosines by tenths of the pairs.
fn tenths(page: &Page) {
    let bins = page.get("report.charts['c-bins'].getOption().xAxis[0].data.length");
    assert_eq!(page.marks("c-bins"), json!([bins, bins, bins]));
    page.select("bin-by", &json!("logp_chosen"));
    assert_eq!(page.marks("c-bins"), json!([10, 10, 10]), "tenths of 13 pairs");
}

/// Filters by regime, and by whether there is a text.
fn filters(page: &Page, pairs: &DataFrame) {
    let rows = || page.get("document.querySelectorAll('#pairs tbody tr').length").as_u64().unwrap();
    let regimes = pairs.column("regime_dpo").unwrap().str().unwrap().clone();
    let first = regimes.get(0).unwrap();
    page.select_plain("f-regime", first);
    assert_eq!(rows(), regimes.iter().filter(|regime| *regime == Some(first)).count() as u64);
    page.select_plain("f-regime", "");
    page.get("(() => { const f = document.getElementById('f-read'); f.checked = true; f.onchange(); return 0; })()");
    let read = page.get("Object.keys(report.data.texts.pairs).filter((k) => k.startsWith(report.data.leaves.findIndex((l) => l.run === 'dpo' && l.step === 4 && l.dataset === 'long') + '/')).length");
    assert_eq!(json!(rows()), read);
    page.get("(() => { const f = document.getElementById('f-read'); f.checked = false; f.onchange(); return 0; })()");
}

/// On a telephone only tables and matrices are wider than the window, and scroll by themselves.
fn telephone(page: &Page) {
    let metrics = headless_chrome::protocol::cdp::Emulation::SetDeviceMetricsOverride {
        width: 390,
        height: 844,
        device_scale_factor: 2.0,
        mobile: true,
        scale: None,
        screen_width: None,
        screen_height: None,
        position_x: None,
        position_y: None,
        dont_set_visible_size: None,
        screen_orientation: None,
        viewport: None,
        display_feature: None,
        device_posture: None,
    };
    page.tab.call_method(metrics).unwrap();
    let wide = || page.get("document.documentElement.scrollWidth");
    assert_eq!(wide(), json!(390));
    page.get("(() => { document.querySelector('#pairs tbody tr').click(); return 0; })()");
    assert_eq!(page.get("document.getElementById('pair').open"), json!(true));
    assert!(page.get("document.getElementById('pair').scrollWidth").as_u64().unwrap() <= 390);
    page.get("(() => { document.getElementById('pair').close(); return 0; })()");
    page.tab.call_method(headless_chrome::protocol::cdp::Emulation::ClearDeviceMetricsOverride(None)).unwrap();
}

/// On paper: what only a screen can use is gone, and there are pages.
fn paper(page: &Page) {
    let shown = || {
        page.get("['filters', 'theme', 'downloads'].map((id) => getComputedStyle(document.getElementById(id)).display)")
    };
    assert!(!shown().as_array().unwrap().contains(&json!("none")));
    let media =
        headless_chrome::protocol::cdp::Emulation::SetEmulatedMedia { media: Some("print".into()), features: None };
    page.tab.call_method(media).unwrap();
    assert_eq!(shown(), json!(["none", "none", "none"]));
    let pdf = page.tab.print_to_pdf(None).unwrap();
    let pages = pdf.windows(11).filter(|bytes| bytes == b"/Type /Page").count();
    assert!(pdf.starts_with(b"%PDF") && pages >= 3, "{pages} pages");
}

#[test]
fn records_without_steps_objectives_or_texts_are_shown_as_far_as_they_go() {
    let Some(browser) = browser() else { return };
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("report.html");
    let golden = |name: &str| repository("tests/golden/analytics").join(name).display().to_string();
    succeed(["report", &golden("large"), &golden("one"), &golden("empty"), "--out", &page.display().to_string()]);
    let page = Page::open(&browser, &page);
    for run in ["large", "one", "empty"] {
        page.select("run", &json!(run));
        assert!(page.marks("c-logp").is_null());
        assert!(page.get("document.getElementById('c-logp').textContent").as_str().unwrap().contains("one step only"));
    }
    assert_eq!(page.get("document.querySelectorAll('#pairs tbody tr').length"), json!(0));
    page.select("run", &json!("large"));
    assert_eq!(page.get("document.querySelectorAll('#pairs tbody tr').length"), json!(25), "a page of 150");
    page.get("(() => { document.getElementById('after').click(); return 0; })()");
    assert_eq!(page.get("document.querySelector('#pairs tbody tr').cells[0].textContent"), json!("25"));
    assert_eq!(page.heard(), Vec::<String>::new());
}

#[test]
fn twenty_thousand_pairs_fit_into_ten_megabytes() {
    let folder = tempfile::tempdir().unwrap();
    let leaf = many(folder.path(), 266);
    let page = folder.path().join("report.html");
    succeed(["report", &leaf.display().to_string(), "--out", &page.display().to_string()]);
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.contains("19950 pairs"));
    // texts and matrices take what is left
    assert!(text.len() < 10_000_000, "{}", text.len());
}

#[test]
fn a_killed_report_leaves_the_old_one_or_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("report.html");
    let leaf = many(folder.path(), 134).display().to_string();
    let words = ["report", &leaf, "--out", &page.display().to_string()].map(str::to_owned);
    succeed(&words);
    let whole = std::fs::read(&page).unwrap();
    let mut killed = 0;
    for wait in (0..20).map(|i| Duration::from_millis(15 * i)) {
        let mut process = tanglescope().args(&words).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(wait);
        killed += usize::from(process.try_wait().unwrap().is_none());
        let _ = process.kill();
        process.wait().unwrap();
        assert_eq!(std::fs::read(&page).unwrap(), whole);
    }
    assert!(killed > 5, "{killed} of 20 runs were still at work");
}

/// Records of 75 pairs a part: the stored ones, again and again.
fn many(folder: &Path, parts: usize) -> PathBuf {
    let leaf = folder.join("many");
    let source = repository("tests/golden/analytics/large/pairs.parquet");
    std::fs::create_dir_all(leaf.join("pairs.parquet")).unwrap();
    for part in 0..parts {
        let from = source.join(format!("0000{}.parquet", part % 2));
        std::fs::copy(from, leaf.join(format!("pairs.parquet/{part:05}.parquet"))).unwrap();
    }
    leaf
}

#[test]
fn markdown_comes_with_its_figures() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("finding.md");
    let golden = repository("tests/golden/analytics/large").display().to_string();
    succeed(["report", &golden, "--out", &out.display().to_string(), "--format", "md"]);
    let text = std::fs::read_to_string(&out).unwrap();
    let figures: Vec<&str> = text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert_eq!(figures.len(), 3, "{text}");
    for figure in figures {
        let svg = std::fs::read_to_string(folder.path().join(figure)).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{figure}");
    }
    assert!(text.contains("| large |"), "{text}");
    // what is said first on the page
    assert!(text.contains("**A small step on dpo of each pair by itself would lower"), "{text}");
    assert!(text.find("- The gradients of both responses").unwrap() < text.find("| large |").unwrap());
}

#[test]
fn checkpoints_of_other_pairs_are_reported_as_far_as_they_go() {
    let folder = tempfile::tempdir().unwrap();
    let source = repository("tests/golden/analytics/large/pairs.parquet");
    for step in 0..2 {
        let leaf = folder.path().join(format!("run=a/step={step}/dataset=d/pairs.parquet"));
        std::fs::create_dir_all(&leaf).unwrap();
        std::fs::copy(source.join(format!("0000{step}.parquet")), leaf.join("00000.parquet")).unwrap();
    }
    let out = folder.path().join("report.md");
    let folder = folder.path().display().to_string();
    succeed(["report", &folder, "--out", &out.display().to_string(), "--format", "md"]);
    let text = std::fs::read_to_string(out).unwrap();
    assert!(text.contains("between the first and the last checkpoint is not told: "), "{text}");
    assert!(text.contains("**A small step on dpo of each pair by itself would lower"), "{text}");
}

#[test]
fn a_folder_without_records_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(["report", &folder.path().display().to_string(), "--out", "x.html"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(error_line(&output).contains("has no records"));
}

#[test]
fn the_demo_runs_offline_and_ends_with_a_page_whose_figures_are_filled() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().display().to_string();
    let said = succeed(["demo", "--out", &out]);
    // what the paper saw is there to be seen
    assert_eq!(said.matches("\n  yes  ").count(), 3, "{said}");
    for remedy in ["dpop", "normalised"] {
        assert!(said.lines().any(|line| line.contains("do not fall under") && line.contains(remedy)), "{said}");
    }
    for run in ["dpo-single", "dpo-short", "dpo-long", "sparse-long"] {
        assert!(folder.path().join("runs").join(run).join("checkpoint-18/model.safetensors").is_file());
        let (_, set) = run.split_once('-').unwrap();
        let swept = format!("sweep/run={run}/step=18/dataset={set}/pairs.parquet/00000.parquet");
        assert!(folder.path().join(swept).is_file());
    }
    let Some(browser) = browser() else { return };
    let page = Page::open(&browser, &folder.path().join("report.html"));
    page.select("run", &json!("dpo-long"));
    let charts = page.get("[...document.querySelectorAll('main .chart')].map((c) => c.id)");
    assert_eq!(charts.as_array().unwrap().len(), 21);
    for chart in charts.as_array().unwrap() {
        let marks = page.marks(chart.as_str().unwrap());
        let filled = |marks: &Vec<Value>| marks.iter().any(|n| n.as_u64().is_some_and(|n| n > 0));
        assert!(marks.as_array().is_some_and(filled), "{chart}: {marks}");
    }
    assert!(page.get("Object.keys(report.data.texts.matrices).length").as_u64().unwrap() > 0);
    assert_eq!(page.heard(), Vec::<String>::new());
}
