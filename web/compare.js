// A before/after slider in DeepInv Compare, where ComfyUI has its own node with one and the front end draws nodes that
// can show it (Nodes 2.0); elsewhere the node shows its grid of pictures.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const LEAST_SIZE = [420, 480];

const addresses = (pictures) => (pictures ?? []).map((one) => api.apiURL(`/view?${new URLSearchParams(one)}`));

app.registerExtension({
  name: "DeepInv.Compare",
  nodeCreated(node) {
    if (node.constructor.comfyClass !== "DeepInvCompare" || !LiteGraph.registered_node_types.ImageCompare) return;
    const made = app.widgets.IMAGECOMPARE(node, "before_after", ["IMAGECOMPARE", {}], app);
    const slider = made.widget ?? made;
    slider.serialize = slider.options.serialize = false; // what it shows is no input
    const drawn = { configurable: true, get: () => Boolean(LiteGraph.vueNodesMode) };
    Object.defineProperty(node, "hideOutputImages", drawn);
    Object.defineProperty(slider, "hidden", { configurable: true, get: () => !LiteGraph.vueNodesMode });
    if (LiteGraph.vueNodesMode) node.setSize(node.size.map((side, axis) => Math.max(side, LEAST_SIZE[axis])));
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.call(this, output);
      slider.value = { beforeImages: addresses(output.a_images), afterImages: addresses(output.b_images) };
      slider.callback?.(slider.value);
    };
  },
});
