// The view "One query": the reference, its captions and edit, the targets' ranks, and strips of results by method.
"use strict";

function QueryView({ run, row, settings }) {
  const [details, setDetails] = useState(null); // of each run, in their order; null for one without the query
  const [failure, setFailure] = useState("");
  const [shown, setShown] = useState(null);
  useEffect(() => {
    let current = true;
    setDetails(null);
    setFailure("");
    setShown(null);
    const ofRun = async (other) => (rowIn(other, run, row) === undefined ? null : loadDetails(other, rowIn(other, run, row)));
    Promise.all(run.all.map(ofRun)).then((found) => current && setDetails(found), (error) => current && setFailure(error.message));
    return () => { current = false; };
  }, [run, row]);
  const rows = useMemo(() => chosenRows(run, settings), [run, settings.toString(), run.measured.size]);
  const place = rows.indexOf(row);
  const neighbour = (step) => rows[place < 0 ? 0 : place + step];
  const link = (other) => address(["query", run.queries.split[other], run.queries.id[other]], settings);
  useLayoutEffect(() => {
    const key = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT|TEXTAREA/.test(event.target.tagName) || shown !== null) return;
      if (event.key === "Escape") location.hash = address(["queries"], settings);
      const step = { ArrowRight: 1, j: 1, ArrowLeft: -1, k: -1 }[event.key];
      const other = step ? neighbour(step) : undefined;
      if (other !== undefined) location.hash = link(other);
    };
    window.addEventListener("keydown", key);
    return () => window.removeEventListener("keydown", key);
  });
  const { queries } = run;
  const next = neighbour(1), before = neighbour(-1);
  return html`<article class="query">
    <nav class="steps" aria-label="queries">
      <a href=${address(["queries"], settings)}>← all queries</a>
      <span class="soft">${place < 0 ? "" : `${(place + 1).toLocaleString("en")} of ${rows.length.toLocaleString("en")}`}</span>
      ${before !== undefined && html`<a href=${link(before)} title="key: left arrow or k">previous</a>`}
      ${next !== undefined && html`<a href=${link(next)} title="key: right arrow or j">next</a>`}
    </nav>
    <section class="ask" aria-label="query">
      <${Picture} run=${run} image=${queries.reference[row]} size=${144} label="reference image" />
      <div>
        <h1>${queries.instruction[row] || "(no text)"}</h1>
        <p class="chips">${queries.split[row]} ${queries.id[row]}${queries.aspects[row].map((code) => html` <span class="chip">${words(queries.aspectNames[code])}</span>`)}</p>
        ${failure && html`<${Line} text=${failure} />`}
        ${details && html`<${Texts} run=${run} row=${row} details=${details[0]} />`}
      </div>
    </section>
    ${details && html`<${Ranks} run=${run} row=${row} details=${details} />`}
    ${details && html`<${Strips} run=${run} row=${row} details=${details} settings=${settings} onShow=${setShown} />`}
    ${details && shown && html`<${Large} row=${shown.series.run === run ? row : undefined} details=${details[0]} shown=${shown} onClose=${() => setShown(null)} />`}
  </article>`;
}

/** Captions, the edited description with the words that no caption has, added objects, roles. */
function Texts({ run, row, details }) {
  const known = new Set(details.captions.flatMap((caption) => caption.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []));
  const marked = (text) =>
    text.split(/([\p{L}\p{N}]+)/u).map((piece, index) => (index % 2 && !known.has(piece.toLowerCase()) ? html`<mark>${piece}</mark>` : piece));
  const status = run.queries.status[row], reader = run.queries.readerStatus?.[row];
  return html`<dl class="texts">
    <dt>edited</dt><dd>${details.edited.map((text) => html`<span class="text">${marked(text)}</span>`)}
      ${status !== "ok" && html`<span class=${isFallback(run, row) ? "bad" : "soft"}>${status}</span>`}</dd>
    <dt>added</dt><dd>${details.added || html`<span class="soft">(nothing)</span>`}</dd>
    ${Object.entries(details.roles).map(([role, texts]) => html`<dt>${words(role)}</dt><dd>${texts.map((text) => html`<span class="text">${text}</span>`)}</dd>`)}
    ${reader && reader !== "ok" && html`<dt>reader</dt><dd class="bad">${reader}</dd>`}
  </dl>
  <details><summary>${details.captions.length} captions of the reference</summary><ul>${details.captions.map((text) => html`<li>${text}</li>`)}</ul></details>
  <${RawAnswers} whose="editor" answers=${details.raw?.editor} />
  <${RawAnswers} whose="reader" answers=${details.raw?.reader} />
  ${details.raw === null && html`<p class="soft">The models' answers are in the page of <code>cvsi explore</code>; here they would take too much space.</p>`}`;
}

/** What a model answered, as it is; each with its status and why it ended, where that is known. */
function RawAnswers({ whose, answers = [] }) {
  if (!answers.length) return null;
  return html`<details class="raw"><summary>${answers.length === 1 ? "raw answer" : `${answers.length} raw answers`} of the ${whose}</summary>
    ${answers.map(([text, status, end]) => html`<pre tabindex="0">${text}</pre><p class="soft">${[status, end && `ended: ${end}`].filter(Boolean).join("; ")}</p>`)}</details>`;
}

/** Every target's rank by method, also when it is far below the results shown. */
function Ranks({ run, row, details }) {
  const { targets } = details[0];
  if (!targets.length) return html`<p class="soft">The targets of this query are not public.</p>`;
  const ranks = new Map(
    [...run.series.values()]
      .map(({ label, run: other, method }) => [label, details[run.all.indexOf(other)]?.ranks[method.name] ?? []])
      .filter(([, of]) => of.length),
  );
  const best = targets.map((_, index) => Math.min(...[...ranks.values()].map((of) => of[index] ?? Infinity)));
  return html`<section><h2>Targets</h2><div class="scroll" tabindex="0" role="region" aria-label="ranks of the targets"><table>
    <thead><tr><th scope="col">method</th><th scope="col">${run.facts.metric}</th>${targets.map(([id, image]) => html`<th scope="col"><${Picture} run=${run} image=${image} size=${56} label=${`target ${id}`} /></th>`)}</tr></thead>
    <tbody>${[...ranks].map(([label, of]) => html`<tr class=${label === run.own ? "own" : ""}><th scope="row">${label}</th><td>${shownNumber(valueOf(run, label, row))}</td>
      ${targets.map((_, index) => html`<td class=${of[index] === best[index] ? "best" : ""}>${(of[index] ?? "> 1,000").toLocaleString("en")}</td>`)}</tr>`)}</tbody>
  </table></div></section>`;
}

/** The first results of the chosen methods under each other. */
function Strips({ run, row, details, settings, onShow }) {
  const labels = [...run.series.keys()];
  const asked = settings.getAll("show").filter((label) => labels.includes(label));
  const chosen = asked.length ? asked : [...new Set(comparedSeries(run, settings))];
  const toggle = (label) => {
    const { path, settings: now } = readAddress();
    const next = chosen.includes(label) ? chosen.filter((one) => one !== label) : [...chosen, label];
    now.delete("show");
    for (const one of labels.filter((one) => next.includes(one))) now.append("show", one);
    replaceAddress(path, now);
  };
  return html`<section><h2>Results</h2>
    <div class="toggles" role="group" aria-label="methods shown">${labels.map((label) => html`<button type="button" aria-pressed=${chosen.includes(label)} title=${run.series.get(label).method.about} onClick=${() => toggle(label)}>${label}</button>`)}</div>
    ${chosen.map((label) => html`<${Strip} key=${label} series=${run.series.get(label)} run=${run} row=${row} details=${details} onShow=${onShow} />`)}
  </section>`;
}

function Strip({ series, run, row, details, onShow }) {
  const [results, setResults] = useState(null);
  const [failure, setFailure] = useState("");
  const { run: other, method, label } = series;
  const own = details[run.all.indexOf(other)];
  useEffect(() => {
    let current = true;
    setResults(null);
    setFailure("");
    if (own === null) return undefined;
    loadStrip(other, rowIn(other, run, row), own, method.name).then((found) => current && setResults(found), (error) => current && setFailure(error.message));
    return () => { current = false; };
  }, [series, row, own]);
  return html`<div class="strip"><h3>${label} <span class="soft">${method.about}</span></h3>
    ${own === null && html`<p class="soft">This run does not have the query.</p>`}
    ${failure && html`<${Line} text=${failure} />`}
    ${results && html`<${Results} run=${other} results=${results} details=${details[0]} series=${series} onShow=${onShow} />`}</div>`;
}

/** Ranked images with the targets, negatives and the reference itself marked. */
function Results({ run, results, details, series, onShow }) {
  const targets = new Set(details.targets.map(([id]) => id)), negatives = new Set(details.negatives.map(([id]) => id));
  return html`<ol>${results.map(([image, score, ...terms], index) => {
    const { id, path } = run.images.get(image);
    const kind = targets.has(id) ? "target" : negatives.has(id) ? "negative" : id === details.reference ? "reference" : "";
    return html`<li class=${kind} key=${image}><button type="button" title=${path} onClick=${() => onShow({ series, image, score, terms, rank: index + 1, kind })}>
      <${Picture} run=${run} image=${image} size=${96} label=${`result ${index + 1}, image ${id}`} /></button>
      <span>${index + 1}${kind && html` <b>${kind}</b>`}</span></li>`;
  })}</ol>`;
}

/** One result enlarged, with its file, caption, and what its score consists of. */
function Large({ row, details, shown, onClose }) {
  const dialog = useRef(null);
  useEffect(() => {
    dialog.current.showModal();
  }, []);
  const { series: { run, method, label }, image, score, terms, rank } = shown;
  const { id, path, caption } = run.images.get(image);
  const target = details.targets.findIndex(([one]) => one === id);
  return html`<dialog ref=${dialog} onClose=${onClose} onClick=${(event) => event.target === dialog.current && dialog.current.close()} aria-label="one result">
    <div class="large">
      <${Picture} run=${run} image=${image} size=${256} />
      <div>
        <h2>${rank}. ${id}</h2>
        <p class="soft">${path}</p>
        <p>${caption || "(no caption)"}</p>
        ${target >= 0 && html`<p class="better">target ${target + 1} of ${details.targets.length}</p>`}
        <p><b>${label}</b> score ${score.toFixed(4)}</p>
        <p class="soft">${method.fusion}</p>
        ${terms.length > 0 && html`<${Terms} method=${method} values=${terms} />`}
        ${run.served && html`<p><a href=${`explore/original/${run.name}/${image}`} target="_blank" rel="noopener">the file itself</a></p>`}
        ${run.served && row !== undefined && html`<${Marks} run=${run} row=${row} image=${image} kind=${shown.kind} />`}
        ${run.served && html`<p><a href=${address(["ask"], new URLSearchParams({ image }))}>use as reference</a></p>`}
        <form method="dialog"><button>Close</button></form>
      </div>
    </div>
  </dialog>`;
}

/** What a score consists of: the products that add up to it, or the value of each linear score. */
function Terms({ method, values }) {
  const largest = Math.max(...values.map(Math.abs), 1e-9);
  return html`<table class="terms"><caption>${method.addsUp ? "Products that add up to the score" : "Linear scores that the form combines"}</caption>
    <tbody>${method.terms.map((name, index) => html`<tr><th scope="row">${name.replace(" * ", " × ")}</th>
      <td class="bar"><span class=${values[index] < 0 ? "negative" : ""} style=${{ width: `${(100 * Math.abs(values[index])) / largest}%` }}></span></td>
      <td>${values[index].toFixed(4)}</td></tr>`)}</tbody></table>`;
}
