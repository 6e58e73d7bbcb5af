"""The look of the page: one style sheet over Gradio's theme, for light and dark. Fonts are the system's."""

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")

CSS = """
.gradio-container {
  --above: #1d4ed8; --below: #64748b; --track: #e2e8f0; --tick: #0f172a; --quiet: #475569;
  --warn-text: #7c2d12; --warn-fill: #fff7ed; --warn-line: #fdba74;
  --error-text: #7f1d1d; --error-fill: #fef2f2; --error-line: #f87171;
}
.dark .gradio-container, .gradio-container.dark {
  --above: #60a5fa; --below: #94a3b8; --track: #334155; --tick: #f8fafc; --quiet: #a8b5c7;
  --warn-text: #fed7aa; --warn-fill: #2a1a10; --warn-line: #9a4a18;
  --error-text: #fecaca; --error-fill: #2b1216; --error-line: #b91c1c;
}
.gradio-container .main.fillable { max-width: 1400px !important; padding-inline: clamp(.75rem, 3vw, 2rem); }
.gradio-container main { width: 100%; }
.gradio-container .html-container { padding: 0; }

.page-header h1 { margin: 0; font-size: 1.6rem; line-height: 1.2; font-weight: 650; color: var(--body-text-color); }
.page-header p { margin: .35rem 0 0; color: var(--quiet); }
.disclaimer {
  margin: 0; padding: .45rem .75rem; border: 1px solid var(--warn-line); border-radius: 8px;
  background: var(--warn-fill); color: var(--warn-text); font-weight: 600; font-size: .92rem;
}
.error-line {
  margin: 0; padding: .6rem .85rem; border: 1px solid var(--error-line); border-radius: 8px;
  background: var(--error-fill); color: var(--error-text); overflow-wrap: anywhere;
}

.formats { margin: -.4rem 0 0; color: var(--quiet); font-size: .88rem; }
.examples-title { margin: 0 0 .45rem; color: var(--body-text-color); font-size: .92rem; }
.examples { display: flex; flex-wrap: wrap; gap: .6rem; }
.example {
  padding: 4px 4px 2px; border: 1px solid var(--border-color-primary); border-radius: 8px; background: none;
  color: var(--body-text-color); font: inherit; font-size: .85rem; cursor: pointer;
}
.example img { display: block; width: 84px; height: 92px; object-fit: cover; border-radius: 5px; background: #000; }
.example:hover { border-color: var(--above); }
.example:focus-visible { outline: 2px solid var(--above); outline-offset: 1px; }

.scores-summary { margin: 0 0 .35rem; color: var(--body-text-color); }
.scores { list-style: none; margin: 0; padding: 0; }
.scores li { margin: 0; padding: 0; }
.score {
  display: grid; width: 100%; align-items: center; column-gap: .75rem; row-gap: .3rem; padding: .42rem .6rem;
  grid-template: "name bar value call" auto / minmax(0, 16.5rem) minmax(4rem, 1fr) 3.1rem 6.2rem;
  border: 0; border-bottom: 1px solid var(--border-color-primary); border-radius: 0; background: none; cursor: pointer;
  font: inherit; font-size: .95rem; line-height: 1.25; text-align: left; color: var(--body-text-color);
}
.scores li:last-child .score { border-bottom: 0; }
.score:hover { background: color-mix(in srgb, var(--above) 7%, transparent); }
.score[aria-pressed="true"] {
  background: color-mix(in srgb, var(--above) 13%, transparent); box-shadow: inset 3px 0 0 var(--above);
}
.score:focus-visible { outline: 2px solid var(--above); outline-offset: -2px; }
.score-name { grid-area: name; overflow-wrap: anywhere; }
.score-value { grid-area: value; text-align: right; font-variant-numeric: tabular-nums; }
.score-call { grid-area: call; color: var(--quiet); font-size: .86rem; font-variant-numeric: tabular-nums; }
.is-above .score-name, .is-above .score-value { font-weight: 600; }
.is-above .score-call { color: var(--above); font-weight: 600; }
.score-bar { grid-area: bar; position: relative; height: 10px; border-radius: 5px; background: var(--track); }
.score-fill { position: absolute; inset: 0 auto 0 0; min-width: 2px; border-radius: 5px; background: var(--below); }
.is-above .score-fill { background: var(--above); }
.score-point, .score-key {
  width: 2px; height: 18px; background: var(--tick); box-shadow: 0 0 0 1.5px var(--background-fill-primary);
}
.score-point { position: absolute; top: -4px; margin-left: -1px; }
.score-key { display: inline-block; margin: 0 .6rem 0 .3rem; vertical-align: -4px; }
.scores-legend, .map-text { margin: .6rem 0 0; color: var(--quiet); font-size: .88rem; }
.map-text { margin: 0; font-size: .95rem; }
.map-text strong { color: var(--body-text-color); }
.for-readers {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap;
}
@media (max-width: 1020px) {
  .score { grid-template: "name value call" auto "bar bar bar" auto / minmax(0, 1fr) 3.1rem 6.2rem; }
}

.definitions {
  margin: 0; display: grid; gap: .5rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
}
.definitions dt { font-weight: 600; color: var(--body-text-color); }
.definitions dd { margin: 0; color: var(--quiet); }
.facts { margin: .75rem 0 0; color: var(--quiet); }
"""
