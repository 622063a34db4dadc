"""The style sheet of `page`."""

STYLE = """
:root { color-scheme: light dark;
  --page: #f4f6f8; --card: #fff; --text: #1a1f26; --quiet: #56616e; --line: #d8dee6; --link: #0b5cad;
  --chip: #eef1f5; --chip2: #e1e6ed; --learn: #c6f0d2; --learn2: #aee6bf; --learn-text: #0a3a1b; --learn-line: #1a7f37;
  --control: #6639ba; --image: #d4e7ff; --image-text: #0a4480; --image-line: #2f81d8;
  --bytes: #7a3e00; --bytes-page: #fff2df;
  --warn: #8f2d0c; --warn-page: #fff0e8; --tip: #1a1f26; --tip-text: #f4f6f8; --hatch: #c3cbd5; --bar-text: #97a3b2 }
@media (prefers-color-scheme: dark) { :root {
  --page: #0e1115; --card: #161b21; --text: #e4e8ed; --quiet: #9aa6b2; --line: #2c343e; --link: #7ab8ff;
  --chip: #222932; --chip2: #2c3540; --learn: #123f25; --learn2: #18522f; --learn-text: #cbf6d8; --learn-line: #3fb950;
  --control: #c8adff; --image: #12335c; --image-text: #c3dfff; --image-line: #4a94e8;
  --bytes: #f6c083; --bytes-page: #43300f;
  --warn: #ffb59a; --warn-page: #3a1c10; --tip: #e4e8ed; --tip-text: #11151a; --hatch: #3b4652; --bar-text: #66727f } }
* { box-sizing: border-box }
html { scroll-padding-top: 1rem }
body { margin: 0 auto; padding: 1.5rem 1.5rem 6rem; max-width: 100rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere }
a { color: var(--link) }
h1 { margin: 0 0 .75rem; font-size: 1.6rem; line-height: 1.25 }
h2 { margin: 0; font-size: 1.15rem }
h3 { margin: 0; font-size: 1rem }
code, .t { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .93em }
.quiet { color: var(--quiet); font-size: .87rem }
.sum { display: flex; flex-wrap: wrap; gap: .6rem; margin: 0 0 1rem }
.sum div { flex: 1 1 8.5rem; padding: .6rem .9rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem }
.sum dt { color: var(--quiet); font-size: .8rem }
.sum dd { margin: 0; font-size: 1.4rem; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums }
.sum dd small { display: block; color: var(--quiet); font-size: .8rem; font-weight: 400 }
.box { margin: 0 0 1rem; padding: .7rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem }
summary { cursor: pointer; font-weight: 600 }
.box dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .45rem 1rem; margin: .7rem 0 0 }
.box dt { text-align: right }
.box dd { margin: 0 }
nav ol { margin: 0; padding: 0; list-style: none }
nav details > ol { max-height: 16rem; margin: .5rem 0 0; overflow: auto; columns: 24rem }
nav li { break-inside: avoid; padding: .1rem 0 }
nav li > ol { display: inline }
nav li li { display: inline }
nav li li + li::before { content: " · "; color: var(--quiet) }
nav details > ol > li > a { margin-right: .6rem; font-weight: 600 }
.row { position: relative; margin: 0 0 1.25rem; padding: 1rem 1.1rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .7rem; content-visibility: auto; contain-intrinsic-size: auto 50rem }
.row > header { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; align-items: baseline }
.bar { display: flex; height: .85rem; margin: .6rem 0 .9rem; overflow: hidden; border-radius: .3rem;
  background: repeating-linear-gradient(135deg, var(--hatch) 0 2px, transparent 2px 6px) }
.bar i { min-width: 0; background: var(--bar-text) }
.bar .y { background: var(--learn-line) }
.bar .m { background: var(--image-line) }
.bar .p { background: none }
.bar .g { box-shadow: inset 3px 0 var(--card) }
.warn { margin: .5rem 0; padding: .5rem .8rem; color: var(--warn); background: var(--warn-page); border-radius: .4rem }
.seg { display: grid; grid-template-columns: minmax(0, 1fr) 22.5rem; gap: .6rem 1.3rem; margin: 0 0 .9rem;
  padding: .8rem 0 .3rem .9rem; border-left: 4px solid var(--line) }
.seg:target, .row:target { border-color: var(--link) }
.seg > header { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: baseline }
.t { line-height: 1.95; white-space: pre-wrap; line-break: anywhere }
.t b, .t mark, dt b, dt mark { white-space: pre; unicode-bidi: isolate }
.t :has(> .n) { unicode-bidi: normal }
.t b, .t mark, .t a, .t span, dt b, dt mark { padding: .14em .12em; border-radius: .22em; font-weight: inherit;
  color: inherit; background: var(--chip); -webkit-box-decoration-break: clone; box-decoration-break: clone }
.t b:nth-child(2n) { background: var(--chip2) }
.t mark, dt mark { color: var(--learn-text); background: var(--learn); box-shadow: inset 0 -2px var(--learn-line) }
.t mark:nth-child(2n) { background: var(--learn2) }
.t .c, dt .c { padding: .1em .3em; outline: 1px dashed var(--control); outline-offset: -1px; font-style: italic }
.t b.c, dt b.c { color: var(--control) }
.t a, dt .m { padding: .14em .5em; color: var(--image-text); background: var(--image); text-decoration: none;
  border-bottom: 2px solid var(--image-line) }
.t .p, dt b.p { padding: .14em .5em; color: var(--quiet); background: none; border: 1px dashed var(--hatch) }
u { position: relative; text-decoration: none }
u::before { content: "␣"; position: absolute; inset: 0; text-align: center; line-height: 1; opacity: .38 }
u.n::before, u.v::before { content: "↵"; position: static; opacity: .65 }
u.v::before { content: "⇥" }
s { margin: 0 .15em; padding: 0 .2em; border-radius: .2em; text-decoration: none; color: var(--bytes);
  background: var(--bytes-page); font-size: .78em; unicode-bidi: isolate }
s.k { margin: 0; padding: 0; background: none; font: 1em system-ui, "DejaVu Sans", sans-serif; color: inherit }
s i { font-size: 0 }
s::before { content: attr(data-x) }
.t b:hover, .t mark:hover, .t a:hover { outline: 2px solid var(--link); outline-offset: -1px; anchor-name: --token }
.t b:hover::after, .t mark:hover::after, .t a:hover::after { position: absolute; z-index: 9; width: max-content;
  max-width: 26rem; margin: .25rem 0; padding: .45rem .7rem; border-radius: .4rem; color: var(--tip-text);
  background: var(--tip); font: 13px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  white-space: pre-wrap; pointer-events: none; box-shadow: 0 4px 14px #0005; position-anchor: --token;
  position-area: bottom span-right; position-try-fallbacks: flip-inline, flip-block, flip-inline flip-block;
  content: "position " attr(data-p) " in the row, " attr(data-s) " in its segment\\A id " attr(data-i)
    "\\A target " attr(data-y) ", loss weight 0" }
.t [data-w]:hover::after { content: "position " attr(data-p) " in the row, " attr(data-s)
    " in its segment\\A id " attr(data-i) "\\A target " attr(data-y) ", loss weight " attr(data-w) }
aside { font-size: .93rem; min-width: 0 }
figure { margin: 0 0 .8rem; break-inside: avoid }
figure img { display: block; max-width: 100%; height: auto; border-radius: .35rem;
  box-shadow: 0 0 0 1px var(--line) }
figure:target img { outline: 3px solid var(--image-line) }
figcaption { margin-top: .25rem }
.small { image-rendering: pixelated }
aside dl { margin: .4rem 0 0 }
aside dt { color: var(--quiet); font-size: .8rem; font-weight: 600 }
aside dd { margin: 0 0 .5rem; padding-left: .6rem; border-left: 2px solid var(--line); white-space: pre-wrap }
aside .y { border-color: var(--learn-line) }
@media (max-width: 62rem) { .seg { grid-template-columns: minmax(0, 1fr) } body { padding: .8rem } }
@media print { body { max-width: none; padding: 0; font-size: 11px; print-color-adjust: exact;
    -webkit-print-color-adjust: exact } nav details > ol { max-height: none } .row { content-visibility: visible }
  .seg { grid-template-columns: minmax(0, 1fr) 15rem } h2, h3, .row > header, .seg > header { break-after: avoid } }
"""
