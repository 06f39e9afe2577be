#pragma once

#include "nixl/capi.h"

// Every function that libnixl_capi.so exports, once: the table of pointers, its loader, and the test that
// accounts for each symbol are made from it. Columns: since which version; what it returns; its name without
// `nixl_capi_`; its parameters. Of 0.10 are 96 functions, which we require; of 1.5 are eight, which may be
// absent. Notes that cost somebody an afternoon stand beside the function.
//
// Strings and buffers: a `void**` or `char**` result is malloc'ed by NIXL and freed by us with free(), except
// in the notification map and the string list, whose pointers live as long as the list does.
#define KVT_NIXL_FUNCTIONS(X)                                                                              \
  /* --- agent. create_agent has a spinning progress thread and no locks: not used. */                     \
  X(k0_10, CStatus, create_configured_agent, (const char* name, const CAgentConfig*, CAgent**))            \
  X(k0_10, CStatus, create_agent, (const char* name, CAgent**))                                            \
  X(k0_10, CStatus, destroy_agent, (CAgent*))                                                              \
  X(k0_10, bool, is_stub, ())                                                                              \
  /* --- plug-ins and their parameters */                                                                  \
  X(k0_10, CStatus, get_available_plugins, (CAgent*, CStringList**))                                       \
  X(k0_10, CStatus, string_list_size, (CStringList*, size_t*))                                             \
  X(k0_10, CStatus, string_list_get, (CStringList*, size_t index, const char**))                           \
  X(k0_10, CStatus, destroy_string_list, (CStringList*))                                                   \
  X(k0_10, CStatus, get_plugin_params, (CAgent*, const char* plugin, CMemoryList**, CParams**))            \
  X(k0_10, CStatus, get_backend_params, (CAgent*, CBackend*, CMemoryList**, CParams**))                    \
  X(k0_10, CStatus, mem_list_size, (CMemoryList*, size_t*))                                                \
  X(k0_10, CStatus, mem_list_is_empty, (CMemoryList*, bool*))                                              \
  X(k0_10, CStatus, mem_list_get, (CMemoryList*, size_t index, MemoryKind*))                               \
  X(k0_10, CStatus, destroy_mem_list, (CMemoryList*))                                                      \
  X(k0_10, CStatus, mem_type_to_string, (MemoryKind, const char**))                                        \
  X(k0_10, CStatus, create_params, (CParams**))                                                            \
  X(k0_10, CStatus, destroy_params, (CParams*))                                                            \
  X(k0_10, CStatus, params_add, (CParams*, const char* key, const char* value))                            \
  X(k0_10, CStatus, params_is_empty, (CParams*, bool*))                                                    \
  X(k0_10, CStatus, params_create_iterator, (CParams*, CParamsIterator**))                                 \
  /* At the end it answers success and leaves key and value as they were. */                               \
  X(k0_10, CStatus, params_iterator_next,                                                                  \
    (CParamsIterator*, const char** key, const char** value, bool* has_next))                              \
  X(k0_10, CStatus, params_destroy_iterator, (CParamsIterator*))                                           \
  /* --- backends. One of a plug-in and agent; destroy_backend frees the wrapper only. */                  \
  X(k0_10, CStatus, create_backend, (CAgent*, const char* plugin, CParams*, CBackend**))                   \
  X(k0_10, CStatus, destroy_backend, (CBackend*))                                                          \
  X(k0_10, CStatus, create_opt_args, (COptions**))                                                         \
  X(k0_10, CStatus, destroy_opt_args, (COptions*))                                                         \
  X(k0_10, CStatus, opt_args_add_backend, (COptions*, CBackend*))                                          \
  X(k0_10, CStatus, opt_args_set_notif_msg, (COptions*, const void*, size_t))                              \
  X(k0_10, CStatus, opt_args_get_notif_msg, (COptions*, void**, size_t*))                                  \
  X(k0_10, CStatus, opt_args_set_has_notif, (COptions*, bool))                                             \
  X(k0_10, CStatus, opt_args_get_has_notif, (COptions*, bool*))                                            \
  X(k0_10, CStatus, opt_args_set_skip_desc_merge, (COptions*, bool))                                       \
  X(k0_10, CStatus, opt_args_get_skip_desc_merge, (COptions*, bool*))                                      \
  X(k0_10, CStatus, opt_args_set_ip_addr, (COptions*, const char*))                                        \
  X(k0_10, CStatus, opt_args_set_port, (COptions*, uint16_t))                                              \
  X(k1_5, CStatus, opt_args_set_custom_param, (COptions*, const void*, size_t))                            \
  X(k1_5, CStatus, opt_args_get_custom_param, (COptions*, void**, size_t*))                                \
  /* --- lists of NIXL descriptors */                                                                      \
  X(k0_10, CStatus, create_xfer_dlist, (MemoryKind, CTransferList**))                                      \
  X(k0_10, CStatus, destroy_xfer_dlist, (CTransferList*))                                                  \
  X(k0_10, CStatus, xfer_dlist_add_desc, (CTransferList*, uintptr_t address, size_t, uint64_t device))     \
  X(k0_10, CStatus, xfer_dlist_get_type, (CTransferList*, MemoryKind*))                                    \
  X(k0_10, CStatus, xfer_dlist_desc_count, (CTransferList*, size_t*))                                      \
  X(k0_10, CStatus, xfer_dlist_len, (CTransferList*, size_t*))                                             \
  X(k0_10, CStatus, xfer_dlist_is_empty, (CTransferList*, bool*))                                          \
  X(k0_10, CStatus, xfer_dlist_clear, (CTransferList*))                                                    \
  X(k0_10, CStatus, xfer_dlist_trim, (CTransferList*))                                                     \
  X(k0_10, CStatus, xfer_dlist_print, (CTransferList*))                                                    \
  X(k0_10, CStatus, xfer_dlist_resize, (CTransferList*, size_t))                                           \
  X(k0_10, CStatus, xfer_dlist_rem_desc, (CTransferList*, int32_t index))                                  \
  X(k0_10, CStatus, create_reg_dlist, (MemoryKind, CRegistrationList**))                                   \
  X(k0_10, CStatus, destroy_reg_dlist, (CRegistrationList*))                                               \
  X(k0_10, CStatus, reg_dlist_add_desc,                                                                    \
    (CRegistrationList*, uintptr_t address, size_t, uint64_t device, const void* meta, size_t meta_bytes)) \
  X(k0_10, CStatus, reg_dlist_get_type, (CRegistrationList*, MemoryKind*))                                 \
  X(k0_10, CStatus, reg_dlist_desc_count, (CRegistrationList*, size_t*))                                   \
  X(k0_10, CStatus, reg_dlist_is_empty, (CRegistrationList*, bool*))                                       \
  X(k0_10, CStatus, reg_dlist_clear, (CRegistrationList*))                                                 \
  X(k0_10, CStatus, reg_dlist_trim, (CRegistrationList*))                                                  \
  X(k0_10, CStatus, reg_dlist_print, (CRegistrationList*))                                                 \
  X(k0_10, CStatus, reg_dlist_resize, (CRegistrationList*, size_t))                                        \
  X(k0_10, CStatus, reg_dlist_rem_desc, (CRegistrationList*, int32_t index))                               \
  X(k1_5, CStatus, create_remote_dlist, (MemoryKind, CRemoteList**))                                       \
  X(k1_5, CStatus, destroy_remote_dlist, (CRemoteList*))                                                   \
  X(k1_5, CStatus, remote_dlist_add_desc,                                                                  \
    (CRemoteList*, uintptr_t address, size_t, uint64_t device, const char* agent))                         \
  /* --- memory views: for device-side code, not used */                                                   \
  X(k1_5, CStatus, prep_mem_view_local, (CAgent*, CTransferList*, CMemoryView**, COptions*))               \
  X(k1_5, CStatus, prep_mem_view_remote, (CAgent*, CRemoteList*, CMemoryView**, COptions*))                \
  X(k1_5, CStatus, release_mem_view, (CAgent*, CMemoryView*))                                              \
  /* --- memory. The list to deregister must equal the registered one; overlaps are freed twice. */        \
  X(k0_10, CStatus, register_mem, (CAgent*, CRegistrationList*, COptions*))                                \
  X(k0_10, CStatus, deregister_mem, (CAgent*, CRegistrationList*, COptions*))                              \
  X(k0_10, CStatus, query_mem, (CAgent*, CRegistrationList*, CQueryList*, COptions*))                      \
  X(k0_10, CStatus, create_query_resp_list, (CQueryList**))                                                \
  X(k0_10, CStatus, destroy_query_resp_list, (CQueryList*))                                                \
  X(k0_10, CStatus, query_resp_list_size, (CQueryList*, size_t*))                                          \
  X(k0_10, CStatus, query_resp_list_has_value, (CQueryList*, size_t index, bool*))                         \
  X(k0_10, CStatus, query_resp_list_get_params, (CQueryList*, size_t index, CParams**))                    \
  /* --- metadata. Those that send or fetch need NIXL's listener or etcd: not used. */                     \
  X(k0_10, CStatus, get_local_md, (CAgent*, void**, size_t*))                                              \
  X(k0_10, CStatus, get_local_partial_md, (CAgent*, CRegistrationList*, void**, size_t*, COptions*))       \
  X(k0_10, CStatus, load_remote_md, (CAgent*, const void*, size_t, char** name))                           \
  X(k0_10, CStatus, invalidate_remote_md, (CAgent*, const char* agent))                                    \
  /* 1.5.1 answers success also for a peer whose connection has ended: it tells no life. */                \
  X(k0_10, CStatus, check_remote_md, (CAgent*, const char* agent, CTransferList*))                         \
  X(k0_10, CStatus, send_local_md, (CAgent*, COptions*))                                                   \
  X(k0_10, CStatus, invalidate_local_md, (CAgent*, COptions*))                                             \
  X(k0_10, CStatus, send_local_partial_md, (CAgent*, CRegistrationList*, COptions*))                       \
  X(k0_10, CStatus, fetch_remote_md, (CAgent*, const char* agent, COptions*))                              \
  X(k0_10, CStatus, agent_make_connection, (CAgent*, const char* agent, COptions*))                        \
  /* --- transfers. Agent "" means the own side; the result pointer of prep is not checked for null. */    \
  X(k0_10, CStatus, prep_xfer_dlist,                                                                       \
    (CAgent*, const char* agent, CTransferList*, CPreparedList**, COptions*))                              \
  X(k0_10, CStatus, release_xfer_dlist_handle, (CAgent*, CPreparedList*))                                  \
  X(k0_10, CStatus, make_xfer_req,                                                                         \
    (CAgent*, Operation, CPreparedList * own, const int32_t* own_indices, size_t own_count,                \
     CPreparedList* remote, const int32_t* remote_indices, size_t remote_count, CRequest**, COptions*))    \
  X(k0_10, CStatus, create_xfer_req,                                                                       \
    (CAgent*, Operation, CTransferList * own, CTransferList * remote, const char* agent, CRequest**,       \
     COptions*))                                                                                           \
  X(k0_10, CStatus, estimate_xfer_cost,                                                                    \
    (CAgent*, CRequest*, COptions*, int64_t * us, int64_t * error_us, int32_t * method))                   \
  /* Copies inside the call on shm and tcp; never returns for a dead LIBFABRIC peer. */                    \
  X(k0_10, CStatus, post_xfer_req, (CAgent*, CRequest*, COptions*))                                        \
  X(k0_10, CStatus, get_xfer_status, (CAgent*, CRequest*))                                                 \
  X(k0_10, CStatus, query_xfer_backend, (CAgent*, CRequest*, CBackend**))                                  \
  X(k0_10, CStatus, get_xfer_telemetry, (CAgent*, CRequest*, CTelemetry*))                                 \
  /* Success says nothing about bytes still on their way. destroy_xfer_req only after it. */               \
  X(k0_10, CStatus, release_xfer_req, (CAgent*, CRequest*))                                                \
  X(k0_10, CStatus, destroy_xfer_req, (CRequest*))                                                         \
  /* --- notifications. get_notifs appends to the map and drives progress. */                              \
  X(k0_10, CStatus, create_notif_map, (CNotifications**))                                                  \
  X(k0_10, CStatus, destroy_notif_map, (CNotifications*))                                                  \
  X(k0_10, CStatus, get_notifs, (CAgent*, CNotifications*, COptions*))                                     \
  X(k0_10, CStatus, notif_map_size, (CNotifications*, size_t*))                                            \
  X(k0_10, CStatus, notif_map_get_agent_at, (CNotifications*, size_t index, const char**))                 \
  X(k0_10, CStatus, notif_map_get_notifs_size, (CNotifications*, const char* agent, size_t*))              \
  X(k0_10, CStatus, notif_map_get_notif,                                                                   \
    (CNotifications*, const char* agent, size_t index, const void**, size_t*))                             \
  X(k0_10, CStatus, notif_map_clear, (CNotifications*))                                                    \
  X(k0_10, CStatus, gen_notif, (CAgent*, const char* agent, const void*, size_t, COptions*))

namespace kvt::nixl {

enum class Since { k0_10, k1_5 };

// One pointer a function, named as the function without its prefix. A function of 1.5 may be null.
struct Api {
#define KVT_NIXL_MEMBER(since, type, name, parameters) type(*name) parameters = nullptr;
  KVT_NIXL_FUNCTIONS(KVT_NIXL_MEMBER)
#undef KVT_NIXL_MEMBER
};

struct FunctionName {
  Since since;
  const char* symbol;
};

inline constexpr FunctionName kFunctions[] = {
#define KVT_NIXL_NAME(since, type, name, parameters) {Since::since, "nixl_capi_" #name},
    KVT_NIXL_FUNCTIONS(KVT_NIXL_NAME)
#undef KVT_NIXL_NAME
};

}  // namespace kvt::nixl
