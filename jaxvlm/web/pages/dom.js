// Elements of the page. Text from outside enters as text nodes only, never as markup.

const PROPERTIES = new Set(["value", "checked", "disabled", "selected", "htmlFor", "multiple", "open", "readOnly"]);

/**
 * Makes an element.
 * @param {string} name tag, with classes after dots: "p.muted"
 * @param {Object} options attributes; `on` {event: listener}, `data` {name: value}, `ref` called with the element
 * @param {...any} children nodes, texts, arrays of these; null and false are skipped
 */
export function h(name, options = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(options)) set(element, key, value);
  add(element, children);
  return element;
}

function set(element, key, value) {
  if (value === null || value === undefined) return;
  if (key === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
  else if (key === "data") Object.assign(element.dataset, value);
  else if (key === "ref") value(element);
  else if (key === "class") element.classList.add(...value.split(" ").filter(Boolean));
  else if (PROPERTIES.has(key)) element[key] = value;
  else if (value === true) element.setAttribute(key, "");
  else if (value !== false) element.setAttribute(key, String(value));
}

/** Appends children as `h` takes them. */
export function add(element, children) {
  for (const child of [children].flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

/** Replaces what an element contains. */
export function fill(element, ...children) {
  element.replaceChildren();
  return add(element, children);
}

let count = 0;

/** An id that no other element of the page has. */
export const newId = (word) => `${word}-${++count}`;

/** Calls `action` when `milliseconds` have passed without another call. */
export function debounce(action, milliseconds) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), milliseconds);
  };
}

/** Waits, in milliseconds; rejects with the signal's reason when it is aborted. */
export function pause(milliseconds, signal) {
  return new Promise((done, fail) => {
    const stop = () => {
      clearTimeout(timer);
      fail(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      done();
    }, milliseconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
