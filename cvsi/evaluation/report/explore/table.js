// The view "Queries": facets, views, a table of thousands of rows of which only the visible ones exist, CSV.
"use strict";

const ROW = 68; // pixels, as style.css has it

function QueriesView({ run, settings }) {
  const rows = useMemo(() => chosenRows(run, settings), [run, settings.toString(), run.measured.size]);
  const [a, b] = comparedSeries(run, settings);
  const series = [...run.series.keys()].map((label) => [label, label]);
  const view = settings.get("view") || "all";
  const [filter, setFilter] = useState(settings.get("text") || "");
  useEffect(() => {
    const timer = setTimeout(() => filter !== (settings.get("text") || "") && changeSettings({ text: filter }), 120);
    return () => clearTimeout(timer);
  }, [filter]);
  const save = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv(run, rows)], { type: "text/csv" }));
    link.download = `${run.name}-queries.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  return html`<div class="queries">
    <div class="tools">
      <label class="choice wide"><span>Find</span><input id="filter" type="search" value=${filter} placeholder="words of the instruction, or an id"
        onInput=${(event) => setFilter(event.target.value)} /></label>
      <${Choice} label="View" value=${view} options=${Object.entries(VIEWS).map(([key, { name }]) => [key, name])}
        onChange=${(value) => changeSettings({ view: value === "all" ? "" : value, sort: "" })} />
      <${Choice} label="A" value=${a} options=${series} onChange=${(value) => changeSettings({ a: value })} />
      <${Choice} label="B" value=${b} options=${series} onChange=${(value) => changeSettings({ b: value })} />
      <button type="button" onClick=${save}>Save as CSV</button>
    </div>
    <div class="columns">
      <${Facets} run=${run} settings=${settings} a=${a} />
      <div class="list">
        <${Moved} run=${run} settings=${settings} />
        <p class="count" role="status">${rows.length.toLocaleString("en")} of ${run.rows.length.toLocaleString("en")} queries${VIEWS[view]?.about ? `: ${VIEWS[view].about}` : ""}</p>
        <${Rows} run=${run} rows=${rows} settings=${settings} a=${a} b=${b} />
      </div>
    </div>
  </div>`;
}

/** Counted values in an order of their names, others after them. */
function inOrder(counted, names) {
  const place = ([name]) => (names.includes(name) ? names.indexOf(name) : names.length);
  return counted.sort((x, y) => place(x) - place(y));
}

/** Values to narrow the table by, each with its number of queries. */
function Facets({ run, settings, a }) {
  const facets = useMemo(() => {
    const count = (of) => {
      const numbers = new Map();
      for (const row of run.rows) for (const name of of(row)) numbers.set(name, (numbers.get(name) || 0) + 1);
      return [...numbers].sort((x, y) => y[1] - x[1]);
    };
    const { queries } = run;
    return [
      ["split", "Split", count((row) => [queries.split[row]])],
      ["status", "Status of the edit", count((row) => [statusKind(queries.status[row])])],
      ["reader", "Status of the reading", queries.readerStatus ? count((row) => [readerKind(run, row)]) : []],
      ["hit", `Best target by ${a}`, inOrder(count((row) => [outcomeOf(run, a, row)]), ["hit at 1", "within 10", "missed"])],
      ["aspect", "Aspect or tag", count((row) => queries.aspects[row].map((code) => queries.aspectNames[code]))],
    ];
  }, [run, a]);
  const toggle = (facet, name) => {
    const { path, settings: now } = readAddress();
    const values = now.getAll(facet);
    now.delete(facet);
    for (const value of values.includes(name) ? values.filter((one) => one !== name) : [...values, name]) now.append(facet, value);
    replaceAddress(path, now);
  };
  const wide = window.matchMedia("(min-width: 800px)").matches;
  return html`<details class="facets" open=${wide}><summary>Narrow by</summary>
    ${facets.filter(([, , values]) => values.length).map(([facet, title, values]) => html`<fieldset><legend>${title}</legend>
      ${values.map(([name, number]) => html`<label><input type="checkbox" checked=${settings.getAll(facet).includes(name)}
        onChange=${() => toggle(facet, name)} /> <span>${words(name)}</span> <span class="soft">${number.toLocaleString("en")}</span></label>`)}
    </fieldset>`)}
  </details>`;
}

/** Says that the table has the queries that changed numbers move; asks the server for them where they are not known. */
function Moved({ run, settings }) {
  const question = movedQuestion(run, settings);
  const key = question && JSON.stringify(question);
  const [failure, setFailure] = useState("");
  useEffect(() => {
    setFailure("");
    if (!key || run.measured.has(key)) return undefined;
    const abort = new AbortController();
    measured(run, question, abort.signal, () => {}).then(
      (found) => found && window.dispatchEvent(new Event("hashchange")),
      (error) => !abort.signal.aborted && setFailure(error.message),
    );
    return () => abort.abort();
  }, [run, key]);
  if (!key) return null;
  const weights = new URLSearchParams(settings);
  weights.delete("moved");
  if (failure) return html`<${Line} text=${failure} />`;
  if (!run.measured.has(key)) return html`<p class="soft" role="status">Computing what the changed numbers move…</p>`;
  return html`<p class="moved">Queries of ${question.split} for which the <a href=${address(["weights"], weights)}>changed numbers</a> are <b>${settings.get("moved") === "same" ? "the same" : settings.get("moved")}</b> <button type="button" onClick=${() => changeSettings({ moved: "" })}>show all</button></p>`;
}

const HEADS = [
  ["index", ""], ["instruction", "Instruction"], ["status", "Edit"], ["valueA", "A"], ["rankA", "rank A"],
  ["valueB", "B"], ["rankB", "rank B"], ["difference", "A − B"],
];

/** The table; only the rows in sight and a few around them are in the page. */
function Rows({ run, rows, settings, a, b }) {
  const box = useRef(null);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(600);
  useLayoutEffect(() => {
    const measure = () => setHeight(box.current ? box.current.clientHeight : 600);
    measure();
    window.addEventListener("resize", measure);
    return () => window.removeEventListener("resize", measure);
  }, []);
  useEffect(() => {
    if (box.current) box.current.scrollTop = 0;
    setTop(0);
  }, [settings.toString()]);
  const view = VIEWS[settings.get("view")] || VIEWS.all;
  const [sorted, order] = (settings.get("sort") || view.sort).split(":");
  const sort = (name) => changeSettings({ sort: `${name}:${sorted === name && order === "down" ? "up" : sorted === name ? "down" : name === "instruction" ? "up" : "down"}` });
  const first = Math.max(0, Math.floor(top / ROW) - 5), last = Math.min(rows.length, Math.ceil((top + height) / ROW) + 5);
  const title = { valueA: a, valueB: b, rankA: "rank", rankB: "rank" };
  return html`<div class="rows" ref=${box} onScroll=${(event) => setTop(event.target.scrollTop)} role="table" aria-rowcount=${rows.length + 1} aria-label="queries" tabindex="0">
    <div class="row head" role="row">
      ${HEADS.map(([name, text]) => html`<span role="columnheader" class=${name} aria-sort=${sorted === name ? (order === "down" ? "descending" : "ascending") : "none"}>
        <button type="button" onClick=${() => sort(name)}>${title[name] ?? text}${name === "index" ? "#" : ""}${sorted === name ? (order === "down" ? " ↓" : " ↑") : ""}</button></span>`)}
    </div>
    <div class="space" role="presentation" style=${{ height: `${first * ROW}px` }}></div>
    ${rows.slice(first, last).map((row, number) => html`<${Row} key=${row} run=${run} row=${row} settings=${settings} a=${a} b=${b} place=${first + number} />`)}
    <div class="space" role="presentation" style=${{ height: `${Math.max(0, rows.length - last) * ROW}px` }}></div>
    ${rows.length === 0 && html`<p class="wait">No query fits. Change the view, the filter or the facets.</p>`}
  </div>`;
}

function Row({ run, row, settings, a, b, place }) {
  const { queries } = run;
  const link = address(["query", queries.split[row], queries.id[row]], settings);
  return html`<div class="row" role="row" aria-rowindex=${place + 2}>
    <span role="cell" class="index"><${Picture} run=${run} image=${queries.reference[row]} size=${56} label="reference image" /></span>
    <span role="cell" class="instruction"><a href=${link}>${queries.instruction[row] || "(no text)"}</a>
      <span class="chips">${queries.split[row]} ${queries.id[row]}${queries.aspects[row].map((code) => html` <span class="chip">${words(queries.aspectNames[code])}</span>`)}</span></span>
    <span role="cell" class=${`status ${isFallback(run, row) ? "bad" : "soft"}`}>${queries.status[row]}</span>
    <span role="cell" class="valueA">${shownNumber(valueOf(run, a, row))}</span>
    <span role="cell" class="rankA soft">${shownRank(run, a, row)}</span>
    <span role="cell" class="valueB">${shownNumber(valueOf(run, b, row))}</span>
    <span role="cell" class="rankB soft">${shownRank(run, b, row)}</span>
    <span role="cell" class="difference"><${Difference} value=${difference(run, a, b, row)} /></span>
  </div>`;
}
