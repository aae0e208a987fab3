// Data scripts to runs, and the page's address to its state. A data script calls explorerData with the name of its file.
"use strict";

const arrived = new Map(); // name of a data file: {promise, resolve}

function expected(name) {
  if (!arrived.has(name)) {
    const entry = {};
    entry.promise = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
    arrived.set(name, entry);
  }
  return arrived.get(name);
}

window.explorerData = (name, content) => expected(name).resolve(content);

/** The content of a data file, which is loaded once. */
function load(name) {
  const known = arrived.has(name);
  const entry = expected(name);
  if (!known) {
    const script = document.createElement("script");
    script.src = `explore/data/${name}.js`;
    script.onerror = () => {
      arrived.delete(name);
      whyMissing(script.src, name).then((line) => entry.reject(new Error(line)));
    };
    document.head.append(script);
  }
  return entry.promise;
}

/** What a server says of a data script that it does not give; a file that is not there has no words of its own. */
async function whyMissing(source, name) {
  const missing = `explore/data/${name}.js is missing; run the stage report again (dvc repro)`;
  if (!source.startsWith("http")) return missing;
  try {
    return (await (await fetch(source)).json()).error ?? missing;
  } catch {
    return "the server does not answer; start it again with cvsi explore";
  }
}

/** JSON of the server that serves this page; raises its line where it refuses. */
async function ask(path, options = {}) {
  const response = await fetch(`explore/api/${path}`, options);
  const type = response.headers.get("content-type") || "";
  const content = type.startsWith("application/json") ? await response.json() : {};
  if (!response.ok) throw new Error(content.error || `the server answered ${response.status}`);
  return content;
}

/** Ask the server for an answer of several lines of JSON, each of which is handed to `take`. */
async function lines(path, question, signal, take) {
  const options = { method: "POST", signal, headers: { "content-type": "application/json" }, body: JSON.stringify(question) };
  const response = await fetch(`explore/api/${path}`, options);
  if (!response.ok) throw new Error((await response.json()).error);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const complete = (rest + part.value).split("\n");
    rest = complete.pop();
    for (const line of complete) take(JSON.parse(line));
  }
}

/** One run with its table of queries and its images; a row is the number of a query. */
async function loadRun(name, served) {
  const [facts, queries, images] = await Promise.all(["run", "queries", "images"].map((part) => load(`${name}/${part}`)));
  const key = (row) => `${queries.split[row]}/${queries.id[row]}`;
  const rows = queries.id.map((_, row) => row);
  const run = { name, served, facts, queries, rows, key, images: new Map(), keys: new Map(rows.map((row) => [key(row), row])) };
  keepImages(run, images);
  return run;
}

/** All runs of the page. The first one's queries are shown; `series` are the methods of all runs, by their labels. */
async function loadRuns() {
  const { runs: names, served, differences = {} } = await load("runs");
  const runs = await Promise.all(names.map((name) => loadRun(name, served)));
  const [first] = runs;
  first.all = runs;
  first.differences = differences;
  first.measured = new Map(); // what the server found of changed numbers, by the question
  first.series = new Map(
    runs.flatMap((run) =>
      run.facts.methods.map((method) => {
        const label = runs.length > 1 ? `${run.name}: ${method.name}` : method.name;
        return [label, { label, run, method }];
      }),
    ),
  );
  first.own = [...first.series.values()].find(({ run, method }) => run === first && method.name === first.facts.own).label;
  return first;
}

function keepImages(run, images) {
  for (const [number, id, path, caption, ratio] of images) run.images.set(number, { id, path, caption, ratio });
}

/** The row of another run that has the same query as a row of the first run; undefined where it has none. */
const rowIn = (other, run, row) => (other === run ? row : other.keys.get(run.key(row)));

/** Everything about one query that the table does not have. */
async function loadDetails(run, row) {
  if (run.served) {
    const details = await ask(`${run.name}/query/${row}`);
    keepImages(run, details.images);
    return details;
  }
  const chunk = Math.floor(row / run.facts.chunk);
  return (await load(`${run.name}/details-${String(chunk).padStart(3, "0")}`))[row % run.facts.chunk];
}

/** The results of one method for one query: image, score, terms of the score each. */
async function loadStrip(run, row, details, method) {
  if (!run.served) return details.strips[method] ?? [];
  const strip = await ask(`${run.name}/strip/${row}?${new URLSearchParams({ method })}`);
  keepImages(run, strip.images);
  return strip.results;
}

/** The address after `#` as a path and settings: `#/query/val/12?a=cvsi`. */
function readAddress() {
  const [path, query] = (location.hash.replace(/^#\/?/, "") || "queries").split("?");
  return { path: path.split("/").map(decodeURIComponent), settings: new URLSearchParams(query || "") };
}

function address(path, settings) {
  const query = settings.toString();
  return `#/${path.map(encodeURIComponent).join("/")}${query ? `?${query}` : ""}`;
}

/** Show another address without a further step in the browser's history. */
function replaceAddress(path, settings) {
  history.replaceState(null, "", address(path, settings));
  window.dispatchEvent(new Event("hashchange"));
}

/** Change some settings of the address in place; empty ones are left out. */
function changeSettings(changes) {
  const { path, settings } = readAddress();
  for (const [name, value] of Object.entries(changes)) {
    if (value === "" || value === null || value === undefined) settings.delete(name);
    else settings.set(name, value);
  }
  replaceAddress(path, settings);
}

const STATUS_OK = /^(ok|repaired)\b/;

/** The queries that the settings choose, in their order: the one place where the table is filtered and sorted. */
function chosenRows(run, settings) {
  const { queries } = run;
  const [a, b] = comparedSeries(run, settings);
  const words = (settings.get("text") || "").toLowerCase().split(/\s+/).filter(Boolean);
  const splits = settings.getAll("split"), aspects = settings.getAll("aspect"), statuses = settings.getAll("status");
  const readers = settings.getAll("reader"), outcomes = settings.getAll("hit");
  const moved = movedRows(run, settings);
  const aspectCodes = aspects.map((name) => queries.aspectNames.indexOf(name));
  const view = VIEWS[settings.get("view")] || VIEWS.all;
  const rows = run.rows.filter(
    (row) =>
      (!splits.length || splits.includes(queries.split[row])) &&
      (!statuses.length || statuses.includes(statusKind(queries.status[row]))) &&
      (!readers.length || readers.includes(readerKind(run, row))) &&
      (!outcomes.length || outcomes.includes(outcomeOf(run, a, row))) &&
      (!moved || moved.has(row)) &&
      aspectCodes.every((code) => queries.aspects[row].includes(code)) &&
      words.every((word) => searchText(run, row).includes(word)) &&
      view.keep(run, row, a, b),
  );
  const [name, order] = (settings.get("sort") || view.sort).split(":");
  const value = (SORTS[name] || SORTS.index)(run, a, b);
  const sign = order === "down" ? -1 : 1;
  return rows
    .map((row) => [value(row), row])
    .sort(([x, r], [y, s]) => compare(x, y, sign) || r - s)
    .map(([, row]) => row);
}

const alphabet = new Intl.Collator(); // many times as fast as localeCompare

/** Numbers or texts in an order; missing ones are last whatever the order. */
function compare(x, y, sign) {
  const noX = x === null || x === undefined, noY = y === null || y === undefined;
  if (noX || noY) return noX - noY;
  return sign * (typeof x === "string" ? alphabet.compare(x, y) : x - y);
}

function searchText(run, row) {
  const { queries } = run;
  run.texts ??= [];
  run.texts[row] ??= `${queries.instruction[row]} ${queries.split[row]} ${queries.id[row]}`.toLowerCase();
  return run.texts[row];
}

/** What the address asks the server for, beside a table of queries that changed numbers move; null without that. */
function movedQuestion(run, settings) {
  if (!run.served || !["better", "worse", "same"].includes(settings.get("moved"))) return null;
  const start = run.facts.methods.find(({ name }) => name === settings.get("method")) ?? run.facts.methods.find(({ name }) => name === run.facts.own);
  const split = settings.get("on") ?? Object.keys(run.facts.splits)[0];
  return { split, fusion: withColumns(readBlock(settings.get("w")) ?? start.block, run) };
}

/** The rows that the changed numbers of the address move as it says; null where it does not, or not yet. */
function movedRows(run, settings) {
  const question = movedQuestion(run, settings);
  const found = question && run.measured.get(JSON.stringify(question));
  return found ? new Set(found.rows[settings.get("moved")]) : null;
}

/** Whether the best target of a query is first, on the first page, or neither, by a series. */
function outcomeOf(run, label, row) {
  if (!isLabelled(run, row)) return "targets not public";
  const rank = rankOf(run, label, row) ?? Infinity;
  return rank === 1 ? "hit at 1" : rank <= 10 ? "within 10" : "missed";
}

const readerKind = (run, row) => statusKind(run.queries.readerStatus?.[row] ?? "");
const statusKind = (status) => status.split(":")[0] || "none";
const isFallback = (run, row) => run.queries.status[row] !== "" && !STATUS_OK.test(run.queries.status[row]);
/** A column of a series for a row of the first run. */
function cellOf(run, label, row, column) {
  const { run: other, method } = run.series.get(label);
  return other.queries.methods[method.name]?.[column][rowIn(other, run, row)] ?? null;
}
const valueOf = (run, label, row) => cellOf(run, label, row, "value");
const rankOf = (run, label, row) => cellOf(run, label, row, "rank");
const isLabelled = (run, row) => valueOf(run, run.own, row) !== null;

function difference(run, a, b, row) {
  const left = valueOf(run, a, row), right = valueOf(run, b, row);
  return left === null || right === null ? null : left - right;
}

/** The rank of the best target, past the first 1,000 as infinity; null where the query has no labels. */
const rankOrLast = (run, method, row) => (isLabelled(run, row) ? (rankOf(run, method, row) ?? Infinity) : null);

const VIEWS = {
  all: { name: "All queries", sort: "index:up", keep: () => true },
  worst: {
    name: "Worst first", sort: "rankA:down", keep: isLabelled,
    about: "labelled queries, the target farthest down first",
  },
  changed: {
    name: "Changed between the two", sort: "size:down",
    keep: (run, row, a, b) => Math.abs(difference(run, a, b, row) ?? 0) > 0,
    about: "queries whose metric differs between A and B, the largest difference first",
  },
  lost: {
    name: "B ranks a target higher than A", sort: "lost:down",
    keep: (run, row, a, b) => isLabelled(run, row) && rankOrLast(run, b, row) < rankOrLast(run, a, row),
    about: "queries where B's best target has a better rank than A's",
  },
  fallbacks: { name: "Fallbacks", sort: "index:up", keep: isFallback, about: "queries whose edit was not usable" },
};

const SORTS = {
  index: () => (row) => row,
  instruction: (run) => (row) => run.queries.instruction[row],
  status: (run) => (row) => run.queries.status[row],
  valueA: (run, a) => (row) => valueOf(run, a, row),
  valueB: (run, a, b) => (row) => valueOf(run, b, row),
  rankA: (run, a) => (row) => rankOrLast(run, a, row),
  rankB: (run, a, b) => (row) => rankOrLast(run, b, row),
  difference: (run, a, b) => (row) => difference(run, a, b, row),
  size: (run, a, b) => (row) => Math.abs(difference(run, a, b, row) ?? 0),
  lost: (run, a, b) => (row) => Math.min(rankOrLast(run, a, row), 1e6) - Math.min(rankOrLast(run, b, row), 1e6),
};

/** The two series that the table compares: those of the address; else the first run's own with another run's or `image`. */
function comparedSeries(run, settings) {
  const labels = [...run.series.keys()];
  const named = (key) => (labels.includes(settings.get(key)) ? settings.get(key) : null);
  const a = named("a") ?? run.own;
  const others = [...run.series.values()];
  const second = others.find(({ run: other, method }) => other !== run && method.name === other.facts.own);
  const plain = others.find(({ run: other, method, label }) => other === run && method.name === "image" && label !== a);
  return [a, named("b") ?? (second && second.label !== a ? second : plain ?? others.find(({ label }) => label !== a) ?? others[0]).label];
}

/** The chosen queries as text in CSV: identity, instruction, status, and each method's value and rank. */
function csv(run, rows) {
  const { queries, facts } = run;
  const quoted = (value) => {
    let text = String(value ?? "");
    if (/^[=+\-@\t\r]/.test(text) && typeof value === "string") text = `'${text}`; // a spreadsheet would run it
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const labels = [...run.series.keys()];
  const head = ["split", "query_id", "reference", "instruction", "aspects", "status"];
  const columns = labels.flatMap((label) => [`${label} ${facts.metric}`, `${label} rank`]);
  const line = (row) => [
    queries.split[row], queries.id[row], run.images.get(queries.reference[row])?.id, queries.instruction[row],
    queries.aspects[row].map((code) => queries.aspectNames[code]).join(" "), queries.status[row],
    ...labels.flatMap((label) => [valueOf(run, label, row), rankOf(run, label, row)]),
  ];
  return [[...head, ...columns], ...rows.map(line)].map((cells) => cells.map(quoted).join(",")).join("\r\n") + "\r\n";
}
