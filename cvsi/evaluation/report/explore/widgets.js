// Small parts that several views use: a picture, a chip, a number.
"use strict";

const { html, render, useState, useEffect, useMemo, useRef, useLayoutEffect } = htmPreact;

/** An image in a square box: a part of a sheet, the server's picture, or the image's name where there is no picture. */
function Picture({ run, image, size, label = "" }) {
  const { facts } = run;
  const { id = "", ratio = 1 } = run.images.get(image) ?? {};
  const text = label || `image ${id}`;
  const box = { width: `${size}px`, height: `${size}px` };
  const [gone, setGone] = useState(false);
  const none = image < 0 || gone || (!run.served && image >= facts.pictures);
  if (none) return html`<span class="picture none" style=${box} title=${id} role="img" aria-label=${text}>${id || "no picture"}</span>`;
  const shape = { width: `${Math.round(size * Math.min(1, ratio))}px`, height: `${Math.round(size * Math.min(1, 1 / ratio))}px` };
  if (run.served) {
    return html`<span class="frame" style=${box}><img class="picture" src=${pictureAddress(run, image, size)} alt=${text} title=${id} loading="lazy" style=${shape} onError=${() => setGone(true)} /></span>`;
  }
  const perSheet = facts.columns * facts.columns;
  const cell = image % perSheet, sheet = Math.floor(image / perSheet);
  const lines = Math.ceil(Math.min(perSheet, facts.pictures - sheet * perSheet) / facts.columns);
  const style = {
    ...shape,
    backgroundImage: `url("explore/pictures/${String(sheet).padStart(2, "0")}.jpg")`,
    backgroundSize: `${facts.columns * size}px ${lines * size}px`,
    backgroundPosition: `-${(cell % facts.columns) * size}px -${Math.floor(cell / facts.columns) * size}px`,
  };
  return html`<span class="frame" style=${box}><span class="picture" role="img" aria-label=${text} title=${id} style=${style}></span></span>`;
}

/** A picture of the server, at the smallest size that is large enough for the screen. */
const pictureAddress = (run, image, size) => `explore/picture/${run.name}/${image}?side=${size * devicePixelRatio > 160 ? 512 : 160}`;

const words = (name) => name.replaceAll("_", " ");
const shownNumber = (value) => (value === null || value === undefined ? "–" : value.toFixed(1));
const shownRank = (run, label, row) =>
  !isLabelled(run, row) ? "" : (rankOf(run, label, row) ?? "> 1,000").toLocaleString("en");

/** A difference with its sign, coloured by it. */
function Difference({ value }) {
  if (value === null) return html`<span class="soft">–</span>`;
  const kind = value > 0 ? "better" : value < 0 ? "worse" : "soft";
  return html`<span class=${kind}>${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(1)}</span>`;
}

function Choice({ label, value, options, onChange }) {
  return html`<label class="choice"><span>${label}</span>
    <select value=${value} onChange=${(event) => onChange(event.target.value)}>
      ${options.map(([key, text]) => html`<option value=${key} selected=${key === value}>${text}</option>`)}
    </select></label>`;
}

function Line({ text }) {
  return html`<p class="wait" role="alert">${text}</p>`;
}
