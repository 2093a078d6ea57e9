/* Lets the search work in pages that are opened from a disk: browsers start no Worker from file://, so that the
   worker's script runs in a hidden frame instead. Without it the page would load such a script from a server. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.onmessage = this.onerror = this.onmessageerror = null
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      this.receive = ({ source, data }) => {
        if (source === this.frame.contentWindow) this.tell(new MessageEvent("message", { data }))
      }
      addEventListener("message", this.receive)
      const quoted = String(url).replaceAll("&", "&amp;").replaceAll('"', "&quot;")
      this.ready = new Promise((done) => {
        this.frame.onload = done
        this.frame.srcdoc =
          `<script>postMessage = (data) => parent.postMessage(data, "*")</` + `script><script src="${quoted}"></` + `script>`
      })
    }
    tell(event) {
      this.dispatchEvent(event)
      this["on" + event.type]?.(event)
    }
    postMessage(data) {
      const copy = structuredClone(data) // the worker changes what it is given
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data: copy })))
    }
    terminate() {
      removeEventListener("message", this.receive)
      this.frame.remove()
    }
  }
}
