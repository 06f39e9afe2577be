export interface NativeNixlProbe {
  /** Absolute path of a libnixl_capi.so. */
  readonly library: string;
  /** Tried with a transfer; absent: none is. */
  readonly plugin?: string;
  /** Every plug-in file is opened, not only that one. */
  readonly allPlugins: boolean;
  /** Looks at what plug-in LIBFABRIC needs, and asks libfabric for its providers; absent: no. */
  readonly fabric?: boolean;
}

export interface NativeNixlReport {
  /** Links resolved. */
  readonly file: string;
  /** "1.5.1"; null when the library's bytes name none. */
  readonly version: string | null;
  /** It has the functions of 1.5. */
  readonly memoryViews: boolean;
  readonly pluginDirectory: string;
  /** Dependencies that it could not find by itself. */
  readonly preloaded: readonly string[];
  /** `why` null: the plug-in can be loaded; else the loader's own words. */
  readonly plugins: readonly { readonly name: string; readonly file: string; readonly why: string | null }[];
  /** null: not looked at, or there is no plug-in LIBFABRIC. */
  readonly fabric: NativeFabric | null;
  /** Files of libucp in the process; more than one is a known cause of hangs. */
  readonly ucp: readonly string[];
  readonly trial: NativeNixlTrial | null;
}

export interface NativeFabric {
  /** Those that plug-in LIBFABRIC asks for by name and that NIXL does not bring; `why`: the loader's own words, null of one that is there. */
  readonly libraries: readonly {
    readonly name: string;
    readonly file: string | null;
    readonly version: string | null;
    readonly why: string | null;
  }[];
  /** With reliable datagrams, as libfabric orders them. */
  readonly providers: readonly string[];
  /** Why there are none. */
  readonly why: string | null;
}

export interface NativeNixlTrial {
  readonly plugin: string;
  /** null: both agents opened and the READ brought the right bytes. */
  readonly why: string | null;
  readonly openMs: number;
  readonly registerMs: number;
  readonly readMs: number;
  readonly readBytes: number;
  readonly metadataBytes: number;
}
