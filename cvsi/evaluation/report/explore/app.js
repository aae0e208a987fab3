// The page: what the address names, of the runs that lie beside it or that a server has.
"use strict";

function Page({ run }) {
  const [place, setPlace] = useState(readAddress());
  useEffect(() => {
    const changed = () => setPlace(readAddress());
    window.addEventListener("hashchange", changed);
    const key = (event) => {
      if (event.key !== "/" || /INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) return;
      const filter = document.getElementById("filter");
      if (filter) {
        event.preventDefault();
        filter.focus();
      }
    };
    window.addEventListener("keydown", key);
    return () => {
      window.removeEventListener("hashchange", changed);
      window.removeEventListener("keydown", key);
    };
  }, []);
  const { facts } = run;
  const [view, split, id] = place.path;
  const row = view === "query" ? run.keys.get(`${split}/${id}`) : undefined;
  document.title = `${row === undefined ? facts.dataset : run.queries.instruction[row]} · CVSI explorer`;
  const empty = run.rows.length === 0;
  return html`<header class="top">
      <p class="name"><b>${facts.dataset}</b> with ${run.all.map((one) => one.facts.backbone).join(", ")}</p>
      <${Scores} run=${run} />
      <nav aria-label="pages"><a href=${address(["queries"], place.settings)} aria-current=${view === "queries" ? "page" : null}>Queries</a>${run.served && !empty && html` <a href=${address(["weights"], place.settings)} aria-current=${view === "weights" ? "page" : null}>Weights</a>`}${run.served && html` <a href=${address(["ask"], place.settings)} aria-current=${view === "ask" ? "page" : null}>Ask</a>`}${!run.served && html` <a href="index.html">Report</a>`}</nav>
      <${Recipes} run=${run} />
    </header>
    <main>
      ${view === "query" && row === undefined && html`<${Line} text=${`There is no query ${id} in split ${split}.`} />`}
      ${row !== undefined ? html`<${QueryView} run=${run} row=${row} settings=${place.settings} />`
        : view === "weights" && run.served && !empty ? html`<${WeightsView} run=${run} settings=${place.settings} />`
        : view === "ask" && run.served ? html`<${AskView} run=${run} settings=${place.settings} />`
        : empty ? html`<${NoQueries} run=${run} />`
        : html`<${QueriesView} run=${run} settings=${place.settings} />`}
    </main>
    ${!run.served && html`<footer class="soft">Change weights, ask new queries and label results: <code>cvsi explore ${facts.dataset}-${facts.backbone}</code></footer>`}`;
}

/** What is said where the dataset has no queries. */
function NoQueries({ run }) {
  return html`<p class="wait" role="status">${run.facts.dataset} has ${run.facts.gallery.toLocaleString("en")} images and no queries, so there are no results to look at. <a href=${address(["ask"], new URLSearchParams())}>Ask</a> with an image, a text, or both${run.facts.noLabels ? "." : "; a question can be kept as a query there."}</p>`;
}

/** The main metric of the run on each labelled split. */
function Scores({ run }) {
  const { facts } = run;
  return html`<p class="soft">${Object.entries(facts.splits).map(([split, methods]) => {
    const [value, low, high] = methods[facts.own];
    return html`<span class="score">${split}: ${facts.metric} ${value.toFixed(1)} (${low.toFixed(1)} to ${high.toFixed(1)})</span> `;
  })}</p>`;
}

/** What differs in the recipes of the other runs from that of the first one. */
function Recipes({ run }) {
  const others = Object.entries(run.differences);
  if (!others.length) return null;
  const number = others.reduce((sum, [, fields]) => sum + fields.length, 0);
  return html`<details class="recipes"><summary>Recipes: what differs (${number})</summary>
    ${others.map(([name, fields]) => (fields.length === 0 ? html`<p class="soft">${name}: nothing</p>` : html`<div class="scroll" tabindex="0" role="region" aria-label=${`recipes of ${run.name} and ${name}`}><table>
      <thead><tr><th scope="col">part</th><th scope="col">field</th><th scope="col">${run.name}</th><th scope="col">${name}</th></tr></thead>
      <tbody>${fields.map(([part, field, first, second]) => html`<tr><th scope="row">${part}</th><td>${field}</td><td>${first || "–"}</td><td>${second || "–"}</td></tr>`)}</tbody></table></div>`))}
  </details>`;
}

/** Replace the line that the page has while it loads. */
function begin(content) {
  const place = document.getElementById("page");
  place.replaceChildren();
  render(content, place);
}

loadRuns().then((run) => begin(html`<${Page} run=${run} />`), (error) => begin(html`<${Line} text=${error.message} />`));
