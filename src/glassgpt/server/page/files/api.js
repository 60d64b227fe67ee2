"use strict";
// What the page asks of the server, and what it does when the server refuses or is gone.

class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const server = {
  key: sessionStorage.getItem("glassgpt-key") || "",
  gone: false,
  onGone: () => {},
  onBack: () => {},
  onKey: () => {},

  // A response that is fine; `ServerError` for a refusal, and for a server that does not answer (status 0).
  async fetch(path, body, signal) {
    const headers = {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    let response;
    try {
      const method = body === undefined ? "GET" : "POST";
      response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      this.lost();
      throw new ServerError(0, "The server does not answer.");
    }
    if (response.ok) return response;
    let message = `${response.status} ${response.statusText}`;
    try {
      message = (await response.json()).error.message;
    } catch { /* not in the error form: a proxy's page, say */ }
    if (response.status === 401) this.onKey();
    throw new ServerError(response.status, message);
  },

  async json(path, body, signal) {
    return (await this.fetch(path, body, signal)).json();
  },

  // The objects of a stream of server-sent events. `ServerError` where it ends too early.
  async *stream(path, body, signal) {
    const response = await this.fetch(path, { ...body, stream: true }, signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let held = "";
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        part = { done: true };
      }
      if (part.done) {
        this.lost();
        throw new ServerError(0, "The connection was lost in the middle of the text.");
      }
      const events = (held + part.value.replaceAll("\r\n", "\n")).split("\n\n");
      held = events.pop();
      for (const event of events) {
        const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
        if (data === "[DONE]") return;
        if (!data) continue;
        const value = JSON.parse(data);
        if (value.error) throw new ServerError(500, value.error.message);
        yield value;
      }
    }
  },

  lost() {
    if (this.gone) return;
    this.gone = true;
    this.onGone();
    this.waiting = setTimeout(() => this.look(), 2000);
  },

  // Whether it is there again; asks anew a while later where it is not.
  async look() {
    clearTimeout(this.waiting);
    try {
      await fetch("health", { cache: "no-store" });
    } catch {
      this.waiting = setTimeout(() => this.look(), 2000);
      return;
    }
    this.gone = false;
    this.onBack();
  },
};
