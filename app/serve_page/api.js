// Talking to the server. The token comes in the address's fragment, which no server ever sees, and stays in this tab.
const KEY = "anyecg-token";

if (location.hash.length > 1) {
  sessionStorage.setItem(KEY, location.hash.slice(1));
  history.replaceState(null, "", location.pathname);
}

export async function ask(path, options = {}) {
  const headers = { ...options.headers, "X-Anyecg-Token": sessionStorage.getItem(KEY) ?? "" };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (cause) {
    if (cause.name === "AbortError") throw cause;
    throw new Error("The server does not answer; start 'anyecg serve' again.");
  }
  if (!answer.ok) {
    const text = await answer.text();
    let said = { error: text };
    try { said = JSON.parse(text); } catch { /* plain text */ }
    // What a file leaves unsaid is typed here, not on a command line.
    const error = said.unsaid ? said.error.replace(/; (give|say which)[^;]*--[^;]*$/, "") : said.error;
    throw Object.assign(new Error(error), { unsaid: said.unsaid, status: answer.status });
  }
  return answer;
}

export const json = async (path, options) => (await ask(path, options)).json();

export const post = (path, body = {}) => json(path, { method: "POST", body: JSON.stringify(body) });

export const floats = async (path) => new Float32Array(await (await ask(path)).arrayBuffer());

// Asks for a long computation and returns its result; `told` hears how far it is. An abort of `signal` ends it, here and
// on the server, which sees the connection close.
export async function watch(path, body, signal, told) {
  const answer = await ask(path, { method: "POST", body: JSON.stringify(body), signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The server ended before the result was there.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const said = JSON.parse(line);
      if ("error" in said) throw new Error(said.error);
      if ("result" in said) return said.result;
      told(said);
    }
  }
}

// Gives the user a file that the server made.
export async function save(name, path, options) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await (await ask(path, options)).blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Sends files that belong together, then, unless that is null, asks what is among them; says how far it is, from 0 to 1.
// A file that the server refuses for its name is left out, and named with the reason.
export async function send(files, progress, what = "records") {
  const { batch } = await post("/api/batches");
  const total = files.reduce((sum, [, file]) => sum + file.size, 0) || 1;
  const leftOut = [];
  let sent = 0;
  for (const [name, file] of files) {
    try {
      await ask(`/api/batches/${batch}/files`, { method: "PUT", body: file, headers: { "X-Name": encodeURIComponent(name) } });
    } catch (cause) {
      if (cause.status !== 400 || files.length === 1) throw cause;
      leftOut.push(`${name}: ${cause.message}`);
    }
    sent += file.size;
    progress(sent / total);
  }
  return { batch, found: what && await post(`/api/batches/${batch}/${what}`), leftOut };
}
