// A conversation as OpenAI's chat completions take it, and as programs would send it.

/**
 * @param {Array} turns {role, content, images: [{url}]}
 * @param {Object} settings temperature, top_p, max_tokens, seed, system
 */
export function requestBody(turns, settings, model) {
  const { system, ...sampling } = settings;
  const messages = turns.map(({ role, content, images = [] }) => ({
    role,
    content:
      images.length === 0
        ? content
        : [...images.map(({ url }) => ({ type: "image_url", image_url: { url } })), { type: "text", text: content }],
  }));
  if (system) messages.unshift({ role: "system", content: system });
  return { model, messages, ...sampling };
}

// Pictures would fill the page with base64.
const short = (body) =>
  JSON.parse(JSON.stringify(body), (key, value) =>
    key === "url" && value.startsWith("data:") ? "data:image/png;base64,..." : value,
  );

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The command of curl. */
export const asCurl = (body) =>
  `curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\\n  -d ${quoted(JSON.stringify(short(body), null, 1))}`;

/** A program with the package openai. */
export function asPython(body) {
  const { model, messages, ...rest } = short(body);
  // JSON of texts, numbers and lists is Python too.
  const given = Object.entries(rest)
    .map(([name, value]) => `${name}=${JSON.stringify(value)}`)
    .join(", ");
  return `from openai import OpenAI\n\nclient = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")\nanswer = client.chat.completions.create(\n    model=${JSON.stringify(model)},\n    messages=${JSON.stringify(messages)},\n    ${given},\n)\nprint(answer.choices[0].message.content)`;
}

/** The pieces of a streamed answer: yields each event's object. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    rest += value ?? "";
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block
        .split(/\r?\n/)
        .filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trimStart())
        .join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
    if (done) return;
  }
}
