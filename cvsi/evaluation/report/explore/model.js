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
      entry.reject(new Error(`explore/data/${name}.js is missing; run the stage report again (dvc repro)`));
    };
    document.head.append(script);
  }
  return entry.promise;
}

/** A run with its table of queries and its images. */
async function loadRun() {
  const [facts, queries, images] = await Promise.all([load("run"), load("queries"), load("images")]);
  const rows = queries.id.map((id, index) => index);
  const keys = new Map(rows.map((row) => [`${queries.split[row]}/${queries.id[row]}`, row]));
  return { facts, queries, images, rows, keys, key: (row) => `${queries.split[row]}/${queries.id[row]}` };
}

/** Everything about one query that the table does not have. */
async function loadDetails(run, row) {
  const chunk = Math.floor(row / run.facts.chunk);
  return (await load(`details-${String(chunk).padStart(3, "0")}`))[row % run.facts.chunk];
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

/** Change some settings of the address in place; empty ones are left out. */
function changeSettings(changes) {
  const { path, settings } = readAddress();
  for (const [name, value] of Object.entries(changes)) {
    if (value === "" || value === null || value === undefined) settings.delete(name);
    else settings.set(name, value);
  }
  history.replaceState(null, "", address(path, settings));
  window.dispatchEvent(new Event("hashchange"));
}

const STATUS_OK = /^(ok|repaired)\b/;

/** The queries that the settings choose, in their order: the one place where the table is filtered and sorted. */
function chosenRows(run, settings) {
  const { queries } = run;
  const [a, b] = comparedMethods(run, settings);
  const words = (settings.get("text") || "").toLowerCase().split(/\s+/).filter(Boolean);
  const splits = settings.getAll("split"), aspects = settings.getAll("aspect"), statuses = settings.getAll("status");
  const aspectCodes = aspects.map((name) => queries.aspectNames.indexOf(name));
  const view = VIEWS[settings.get("view")] || VIEWS.all;
  const rows = run.rows.filter(
    (row) =>
      (!splits.length || splits.includes(queries.split[row])) &&
      (!statuses.length || statuses.includes(statusKind(queries.status[row]))) &&
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

/** Numbers or texts in an order; missing ones are last whatever the order. */
function compare(x, y, sign) {
  const noX = x === null || x === undefined, noY = y === null || y === undefined;
  if (noX || noY) return noX - noY;
  return sign * (typeof x === "string" ? x.localeCompare(y) : x - y);
}

function searchText(run, row) {
  const { queries } = run;
  run.texts ??= [];
  run.texts[row] ??= `${queries.instruction[row]} ${queries.split[row]} ${queries.id[row]}`.toLowerCase();
  return run.texts[row];
}

const statusKind = (status) => status.split(":")[0] || "none";
const isFallback = (run, row) => run.queries.status[row] !== "" && !STATUS_OK.test(run.queries.status[row]);
const valueOf = (run, method, row) => run.queries.methods[method]?.value[row] ?? null;
const rankOf = (run, method, row) => run.queries.methods[method]?.rank[row] ?? null;
const isLabelled = (run, row) => valueOf(run, run.facts.own, row) !== null;

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

/** The two methods that the table compares: those of the address, else the run's own and `image`, or the next one. */
function comparedMethods(run, settings) {
  const names = run.facts.methods.map((method) => method.name);
  const named = (key) => (names.includes(settings.get(key)) ? settings.get(key) : null);
  const a = named("a") ?? run.facts.own;
  const b = named("b") ?? (a !== "image" && names.includes("image") ? "image" : names.find((name) => name !== a) ?? a);
  return [a, b];
}

/** The chosen queries as text in CSV: identity, instruction, status, and each method's value and rank. */
function csv(run, rows) {
  const { queries, facts } = run;
  const quoted = (value) => {
    let text = String(value ?? "");
    if (/^[=+\-@\t\r]/.test(text) && typeof value === "string") text = `'${text}`; // a spreadsheet would run it
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const methods = Object.keys(queries.methods);
  const head = ["split", "query_id", "reference", "instruction", "aspects", "status"];
  const columns = methods.flatMap((method) => [`${method} ${facts.metric}`, `${method} rank`]);
  const line = (row) => [
    queries.split[row], queries.id[row], run.images.image_id[queries.reference[row]], queries.instruction[row],
    queries.aspects[row].map((code) => queries.aspectNames[code]).join(" "), queries.status[row],
    ...methods.flatMap((method) => [valueOf(run, method, row), rankOf(run, method, row)]),
  ];
  return [[...head, ...columns], ...rows.map(line)].map((cells) => cells.map(quoted).join(",")).join("\r\n") + "\r\n";
}
