// The search of Material for MkDocs runs in a worker, and browsers start none for a page that was opened as a file.
// For such a page, a hidden frame runs the worker's script instead, and messages are events of the frame's window.
// The file's name keeps the plugin `offline` from loading a replacement from another origin.
if (location.protocol === "file:") {
  window.Worker = class FrameWorker extends EventTarget {
    constructor(address) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = (data) => setTimeout(() => this.dispatchEvent(new MessageEvent("message", {data})));
      const script = inside.document.createElement("script");
      script.src = new URL(address, location.href).href;
      this.loaded = new Promise((resolve, reject) => {
        script.onload = resolve;
        script.onerror = () => reject(new Error(`${script.src} does not load`));
      });
      inside.document.body.append(script);
      this.inside = inside;
    }

    postMessage(data) {
      this.loaded.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", {data})));
    }
  };
}
