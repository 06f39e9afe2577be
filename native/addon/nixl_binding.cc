#include "addon/nixl_binding.h"

#include "addon/arguments.h"
#include "addon/error_value.h"
#include "nixl/probe.h"
#include "paths/nixl_descriptor.h"

namespace kvt {
namespace {

Napi::Array ToArray(Napi::Env env, const std::vector<std::string>& texts) {
  Napi::Array array = Napi::Array::New(env, texts.size());
  for (size_t at = 0; at < texts.size(); ++at) {
    array.Set(static_cast<uint32_t>(at), Napi::String::New(env, texts[at]));
  }
  return array;
}

Napi::Value TextOrNull(Napi::Env env, const std::string& why) {
  return why.empty() ? env.Null() : Napi::Value(Napi::String::New(env, why));
}

Napi::Object ToObject(Napi::Env env, const nixl::PluginTrial& trial) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("plugin", trial.plugin);
  object.Set("why", TextOrNull(env, trial.why));
  object.Set("openMs", trial.open_ms);
  object.Set("registerMs", trial.register_ms);
  object.Set("readMs", trial.read_ms);
  object.Set("readBytes", static_cast<double>(trial.read_bytes));
  object.Set("metadataBytes", static_cast<double>(trial.metadata_bytes));
  return object;
}

Napi::Object ToObject(Napi::Env env, const nixl::FabricFinding& fabric) {
  Napi::Object object = Napi::Object::New(env);
  Napi::Array libraries = Napi::Array::New(env, fabric.libraries.size());
  for (size_t at = 0; at < fabric.libraries.size(); ++at) {
    const nixl::LibraryFinding& finding = fabric.libraries[at];
    Napi::Object library = Napi::Object::New(env);
    library.Set("name", finding.name);
    library.Set("file", TextOrNull(env, finding.file));
    library.Set("version", TextOrNull(env, finding.version));
    library.Set("why", TextOrNull(env, finding.why));
    libraries.Set(static_cast<uint32_t>(at), library);
  }
  object.Set("libraries", libraries);
  object.Set("providers", ToArray(env, fabric.providers));
  object.Set("why", TextOrNull(env, fabric.why));
  return object;
}

Napi::Object ToObject(Napi::Env env, const nixl::ProbeReport& report) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("file", report.file);
  object.Set("version", TextOrNull(env, report.version));
  object.Set("memoryViews", report.memory_views);
  object.Set("pluginDirectory", report.plugin_directory);
  object.Set("preloaded", ToArray(env, report.preloaded));
  Napi::Array plugins = Napi::Array::New(env, report.plugins.size());
  for (size_t at = 0; at < report.plugins.size(); ++at) {
    const nixl::PluginFinding& finding = report.plugins[at];
    Napi::Object plugin = Napi::Object::New(env);
    plugin.Set("name", finding.name);
    plugin.Set("file", finding.file);
    plugin.Set("why", TextOrNull(env, finding.why));
    plugins.Set(static_cast<uint32_t>(at), plugin);
  }
  object.Set("plugins", plugins);
  object.Set("fabric", report.fabric ? Napi::Value(ToObject(env, *report.fabric)) : env.Null());
  object.Set("ucp", ToArray(env, report.ucp));
  object.Set("trial", report.trial ? Napi::Value(ToObject(env, *report.trial)) : env.Null());
  return object;
}

Napi::Value ProbeNixl(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Arguments arguments(env);
  const Napi::Object options = arguments.Object(info[0], "options");
  nixl::ProbeOptions wanted;
  wanted.library = arguments.Text(options.Get("library"), "options.library");
  const Napi::Value plugin = options.Get("plugin");
  if (!plugin.IsUndefined()) wanted.plugin = arguments.Text(plugin, "options.plugin");
  wanted.all_plugins = arguments.Boolean(options.Get("allPlugins"), "options.allPlugins");
  const Napi::Value fabric = options.Get("fabric");
  if (!fabric.IsUndefined()) wanted.fabric = arguments.Boolean(fabric, "options.fabric");
  if (!arguments.ok()) return env.Undefined();
  try {
    auto report = nixl::Probe(wanted);
    if (report.ok()) return ToObject(env, report.value());
    ToError(env, report.error()).ThrowAsJavaScriptException();
  } catch (const std::exception& error) {
    Napi::Error::New(env, error.what()).ThrowAsJavaScriptException();
  }
  return env.Undefined();
}

Napi::Value PairVersions(const Napi::CallbackInfo& info) {
  Arguments arguments(info.Env());
  const std::string one = arguments.Text(info[0], "one");
  const std::string other = arguments.Text(info[1], "other");
  if (!arguments.ok()) return info.Env().Undefined();
  return Napi::Boolean::New(info.Env(), NixlVersionsPair(one, other));
}

}  // namespace

void RegisterNixl(Napi::Env env, Napi::Object exports) {
  exports.Set("probeNixl", Napi::Function::New(env, ProbeNixl, "probeNixl"));
  exports.Set("nixlVersionsPair", Napi::Function::New(env, PairVersions, "nixlVersionsPair"));
}

}  // namespace kvt
