{
  # node-gyp only starts our own build: CMake builds in build-gyp/, and the addon is copied to where the loader looks.
  "targets": [
    {
      "target_name": "kv_transceiver",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": ["CMakeLists.txt", "package.json"],
          "outputs": ["<(PRODUCT_DIR)/kv_transceiver.node"],
          "action": ["node", "scripts/native.mjs", "--out", "build-gyp", "--copy-to", "build/Release"]
        }
      ]
    }
  ]
}
