import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { freePorts } from "../../../src/cli/ports.ts";
import { buildKvt, type KvtProcess, startKvt } from "../cli/kvt_process.ts";
import { events, generationReply, ScriptedWorker } from "./scripted_worker.ts";

const openssl = (...args: readonly string[]): boolean => {
  try {
    execFileSync("openssl", args, { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
};

interface Keys {
  readonly key: string;
  readonly cert: string;
}

// Node reads the authorities that it is given once, at its start: so these routers are processes.
describe.skipIf(!openssl("version"))(
  "workers that speak https (skipped without the openssl command, which makes the certificates)",
  () => {
    const folder = mkdtempSync(join(tmpdir(), "kvt-https-"));
    const started: KvtProcess[] = [];
    let workers: ScriptedWorker[] = [];
    let port = 0;
    beforeAll(buildKvt, 120_000);
    beforeEach(async () => {
      [port = 0] = await freePorts(1);
    });
    afterAll(async () => {
      for (const { child } of started) child.kill("SIGKILL");
      await Promise.all([...started.map(({ ended }) => ended), ...workers.map((worker) => worker.die())]);
      rmSync(folder, { recursive: true, force: true });
    });

    const fileOf = (name: string): string => join(folder, name);
    const kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];

    /** An authority of its own, `<name>.ca`. */
    function makeAuthority(name: string): void {
      const files = ["-keyout", fileOf(`${name}.cakey`), "-out", fileOf(`${name}.ca`)];
      expect(openssl("req", "-x509", ...kind, "-subj", `/CN=${name}`, ...files)).toBe(true);
    }

    function makeCertificate(authority: string, host: string): Keys {
      const file = fileOf(`${authority}-${host}`);
      const request = [...kind.slice(0, -2), "-subj", "/CN=worker", "-keyout", `${file}.key`, "-out", `${file}.csr`];
      expect(openssl("req", ...request)).toBe(true);
      writeFileSync(`${file}.ext`, `subjectAltName=${host}`);
      const signer = ["-CA", fileOf(`${authority}.ca`), "-CAkey", fileOf(`${authority}.cakey`), "-CAcreateserial"];
      const files = ["-in", `${file}.csr`, "-extfile", `${file}.ext`, "-out", `${file}.crt`];
      expect(openssl("x509", "-req", "-days", "2", ...signer, ...files)).toBe(true);
      return { key: readFileSync(`${file}.key`, "utf8"), cert: readFileSync(`${file}.crt`, "utf8") };
    }

    async function startWorkers(keys: Keys): Promise<void> {
      await Promise.all(workers.map((worker) => worker.die()));
      workers = await Promise.all([1, 2].map(() => new ScriptedWorker(keys).listen()));
    }

    function startRouter(more: readonly string[], env: Readonly<Record<string, string>> = {}): KvtProcess {
      const [context, generation] = workers.map(({ address }) => address.url);
      const file = fileOf(`router-${port}.yaml`);
      writeFileSync(
        file,
        `hostname: 127.0.0.1\nport: ${port}\ncontext_servers:\n  num_instances: 1\n  urls: ["${context}"]\n` +
          `generation_servers:\n  num_instances: 1\n  urls: ["${generation}"]\n`,
      );
      const router = startKvt(["disaggregated", "-c", file, ...more], env);
      started.push(router);
      return router;
    }

    const complete = (fields: object): Promise<Response> =>
      fetch(`http://127.0.0.1:${port}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ model: "tiny", prompt: "a b c", max_tokens: 2, ...fields }),
      });

    it("serve both hops, whole and streamed, when NODE_EXTRA_CA_CERTS names their authority", async () => {
      makeAuthority("ours");
      await startWorkers(makeCertificate("ours", "IP:127.0.0.1"));
      const router = startRouter([], { NODE_EXTRA_CA_CERTS: fileOf("ours.ca") });
      await router.said("all workers are ready");
      const whole = await complete({});
      expect([whole.status, await whole.text()]).toEqual([200, generationReply()]);
      expect(await (await complete({ stream: true })).text()).toBe(events.join(""));
      expect(workers.map(({ requests }) => requests.map(({ hop }) => hop))).toEqual([
        ["context", "context"],
        ["generation", "generation"],
      ]);
    });

    it.each([
      [
        "of an authority that the router does not know",
        "theirs",
        "IP:127.0.0.1",
        {},
        /UNABLE_TO_VERIFY_LEAF_SIGNATURE/,
      ],
      ["for another host", "ours", "DNS:elsewhere", { trusted: "ours" }, /ERR_TLS_CERT_ALTNAME_INVALID/],
    ] as const)(
      "with a certificate %s are out of use, and the start ends with one clear error",
      async (_what, authority, host, { trusted = "" }: { readonly trusted?: string }, code) => {
        makeAuthority(authority);
        await startWorkers(makeCertificate(authority, host));
        const env = trusted === "" ? {} : { NODE_EXTRA_CA_CERTS: fileOf(`${trusted}.ca`) };
        const router = startRouter(["-t", "1"], env);
        expect(await router.ended).toBe(3);
        const [, told = ""] = /(not ready[\s\S]*)$/.exec(router.output()) ?? [];
        for (const { address } of workers) expect(told).toContain(address.url);
        expect(told).toContain("its certificate is not accepted");
        expect(told).toMatch(code);
        expect(told).toContain("NODE_EXTRA_CA_CERTS");
        expect(workers.flatMap(({ requests }) => requests)).toEqual([]);
      },
    );
  },
);
